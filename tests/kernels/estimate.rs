//! How long a step should take on a card, by arithmetic over what its kernels were counted to do. `tools/kernel-tables.sh` puts
//! the table into `kernels/TRAFFIC.md`. It is no measurement: what a kernel waits for is not in it.

use crate::common::device::nvrtc_only;
use crate::traffic::{selected, step};
use cuda_on_cpu::ptx::Counts;
use topk_sae::backend::cuda::device::Element;
use topk_sae::spec::{Activation, Precision};

/// An H100 SXM: the rates by which the floor is made up as well.
mod card {
    pub const MULTIPROCESSORS: f64 = 132.0;
    /// Warp instructions that one of them starts in a second: four a cycle at 1.755 GHz.
    pub const ISSUED: f64 = 4.0 * 1.755e9;
    /// Bytes a second from its second cache, and from its memory.
    pub const CACHE: f64 = 5.5e12;
    pub const MEMORY: f64 = 3.0e12;
    /// Operations a second in products of bfloat16.
    pub const PRODUCT: f64 = 790e12;
    /// Seconds from the end of one kernel of a graph to the start of the next.
    pub const LAUNCH: f64 = 1.5e-6;
}

const N: f64 = 4096.0;
const D: f64 = 1024.0;
const M: f64 = 16_384.0;
const K: f64 = 64.0;
/// What is counted is a part of the rows and as large a part of the latents, so that lists are as long.
const PART: usize = 16;

/// Seconds in which its instructions can be started, and in which its bytes can be moved, of which `memory` are not in a cache.
fn seconds(c: &Counts, memory: f64) -> (f64, f64) {
    let multiprocessors = card::MULTIPROCESSORS.min(c.blocks as f64);
    let issue = c.instructions as f64 / (multiprocessors * card::ISSUED);
    let cached = (32.0 * c.sectors as f64 - memory).max(0.0);
    (issue, cached / card::CACHE + memory / card::MEMORY)
}

#[test]
fn a_step_is_estimated_to_take_hardly_more_than_its_floor() {
    if nvrtc_only("what kernels move") {
        return;
    }
    println!(
        "\n| kernel | instructions of warps, millions | sectors, MB | from memory, MB | issue, us | bytes, us | estimate, us |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let sizes = [N as usize / PART, D as usize, M as usize / PART, K as usize];
    let mut kernels = step(sizes, 1.0, Precision::Bf16, true, (Activation::Topk, 0));
    let times = |c: Counts, part: u64| Counts {
        instructions: part * c.instructions,
        sectors: part * c.sectors,
        blocks: part * c.blocks,
        ..c
    };
    // Kernels of one block go over all rows or all latents, and most of what they do may be the same for few of them.
    let whole = [[N as usize, 8, 64, 4], [4, 8, M as usize, K as usize]]
        .map(|sizes| step(sizes, 1.0, Precision::Bf16, true, (Activation::Topk, 0)));
    for (kernel, c) in &mut kernels {
        *c = if c.blocks == 1 {
            let of_one = whole.iter().filter_map(|counts| counts.get(kernel));
            *of_one.max_by_key(|c| c.instructions).unwrap()
        } else {
            times(*c, PART as u64)
        };
    }
    // Rows as long as they are: the selection does not grow with their length.
    let (rows, c) = selected(Element::Bf16, M as usize, K as usize);
    kernels.insert("topk_stream_bf16", times(c, N as u64 / rows));

    let product = 2.0 * N * D * M / card::PRODUCT;
    println!("| product of the encoder | | | | | | {:.0} |", 1e6 * product);
    let mut all = product;
    for (kernel, c) in kernels {
        let memory = match kernel {
            "topk_stream_bf16" => 2.0 * N * M,
            // Parameters and moments, read and written, and the copy.
            "latent_update_bf16_tied" => 26.0 * D * M,
            "gather_norm_bf16" => 2.0 * N * D,
            _ => 0.0,
        };
        let (issue, bytes) = seconds(&c, memory);
        let estimate = issue.max(bytes) + card::LAUNCH;
        all += estimate;
        println!(
            "| `{kernel}` | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            1e-6 * c.instructions as f64,
            32e-6 * c.sectors as f64,
            1e-6 * memory,
            1e6 * issue,
            1e6 * bytes,
            1e6 * estimate
        );
    }
    // Scores written and read; rows of W_dec once; two rows for each entry; Adam.
    let floor = product
        + 4.0 * N * M / card::MEMORY
        + 2.0 * N * K * D / card::CACHE
        + 4.0 * N * K * D / card::CACHE
        + 26.0 * D * M / card::MEMORY;
    println!("| the step; its floor is {:.0} us | | | | | | {:.0} |", 1e6 * floor, 1e6 * all);
    assert!(all < 1.3 * floor, "{all} of {floor} seconds");
}
