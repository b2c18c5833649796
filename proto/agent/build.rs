//! Generates the messages and the ttrpc service from `agent.proto`.

use std::path::PathBuf;
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    println!("cargo:rerun-if-changed=agent.proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    Codegen::new()
        .out_dir(&out)
        .input("agent.proto")
        .include(".")
        .rust_protobuf()
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()
        .expect("agent.proto is valid");
    // The generated files begin with inner attributes, which only a file of its own may have.
    std::fs::write(out.join("mod.rs"), "pub mod agent;\npub mod agent_ttrpc;\n")
        .expect("OUT_DIR can be written");
}
