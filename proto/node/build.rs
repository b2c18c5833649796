//! Generates the messages, server and client from `node.proto`, without `protoc`.

fn main() {
    println!("cargo:rerun-if-changed=node.proto");
    let descriptors = protox::compile(["node.proto"], ["."]).expect("node.proto is valid");
    tonic_prost_build::configure()
        .compile_fds(descriptors)
        .expect("code for node.proto can be generated");
}
