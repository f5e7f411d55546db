//! Gathers `kernels/*.cu` and `kernels/*.cuh` into one table of names and texts, so that the binary carries its
//! kernels. Needs nothing of CUDA.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=build.rs");
    let root = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let folder = Path::new(&root).join("kernels");
    let mut names: Vec<String> = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.retain(|name| name.ends_with(".cu") || name.ends_with(".cuh"));
    names.sort();
    let mut table = String::from("/// Name and text of every file in `kernels/`, by name.\n");
    table.push_str("pub const SOURCES: &[(&str, &str)] = &[\n");
    for name in &names {
        let path = folder.join(name);
        table.push_str(&format!("    ({name:?}, include_str!({:?})),\n", path.display().to_string()));
    }
    table.push_str("];\n");
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    fs::write(Path::new(&out).join("kernel_sources.rs"), table)
}
