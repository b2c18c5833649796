//! Generates the messages, servers and clients from `runtime.proto`, without `protoc`.

use prost::Message;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=runtime.proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let descriptors = protox::compile(["runtime.proto"], ["."]).expect("runtime.proto is valid");
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())
        .expect("OUT_DIR can be written");
    // The store keeps requests as JSON; a field that an older daemon did not write is its default.
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]")
        .compile_fds(descriptors)
        .expect("code for runtime.proto can be generated");
}
