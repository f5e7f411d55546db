//! Prints what each kernel takes of a card, as Markdown; needs NVRTC and no GPU.
//!
//!     cargo run --release --example kernel_table -- 80 90 120 > kernels/RESOURCES.md
//!
//! Without arguments: all architectures that are promised.

use topk_sae::backend::cuda::compile::resources::{markdown, resources};
use topk_sae::backend::cuda::compile::{Arch, compile};
use topk_sae::backend::cuda::{
    libraries::{self, Need},
    sources::SOURCES,
};
use topk_sae::error::{Error, Result};

fn main() -> Result<()> {
    let mut architectures = Vec::new();
    for arg in std::env::args().skip(1) {
        let number = arg.trim_start_matches("sm_").parse().map_err(|_| {
            Error::Usage(format!("{arg} is no architecture; write numbers such as 90 for sm_90"))
        })?;
        architectures.push(Arch(number));
    }
    if architectures.is_empty() {
        architectures = [80, 86, 89, 90, 100, 120].map(Arch).to_vec();
    }
    let (major, minor) = libraries::nvrtc(Need::default()).map_err(Error::Failed)?.version;
    let mut columns = Vec::new();
    for arch in architectures {
        columns.push((arch, resources(&compile(SOURCES, arch, true)?.log)));
    }
    println!("# What the kernels take of a card\n");
    println!(
        "Registers of a thread, by `cargo run --release --example kernel_table`, NVRTC {major}.{minor}. `tests/nvrtc.rs` allows no spill.\n"
    );
    print!("{}", markdown(&columns));
    Ok(())
}
