//! Compiles `proto/` without protoc: Rust types for the API, and one descriptor set with every custom option for the
//! catalog and for reflection. Records get no Rust types: the gateway handles them by their descriptors alone.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut api = Vec::new();
    for area in ["gateway", "department", "fact", "audit", "admin"] {
        protos_in(&Path::new("proto/oncegate").join(area).join("v1"), &mut api)?;
    }
    let descriptors = protox::compile(&api, ["proto"])?;
    tonic_prost_build::configure().extern_path(".google.rpc", "::tonic_types").bytes(".").compile_fds(descriptors)?;

    let mut all = api;
    protos_in(Path::new("proto/oncegate/records/v1"), &mut all)?;
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(false).include_imports(true).open_files(&all)?;
    // `file_descriptor_set()` would lose the custom options.
    fs::write(out.join("oncegate.binpb"), compiler.encode_file_descriptor_set())?;
    Ok(())
}

fn protos_in(dir: &Path, into: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    let mut found: Vec<_> = fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    found.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    found.sort();
    into.extend(found);
    Ok(())
}
