//! Defects planted into the kernels before NVRTC compiles them, to see that running its PTX tells of them.

use crate::case::Case;
use crate::common::device::{compiled, nvrtc_only, of_nvrtc};
use crate::common::emulator::Emulator;
use crate::controls::{every_barrier, found};
use crate::engine::on;
use crate::topk;
use cuda_on_cpu::{mutate, ptx};
use std::panic::{AssertUnwindSafe, catch_unwind};
use topk_sae::backend::cuda::compile::{self, Arch};
use topk_sae::backend::cuda::device::Element;
use topk_sae::backend::cuda::sources::SOURCES;

/// The kernels, those of `file` as they are in `sources`.
fn kernels(sources: &[(String, String)], file: &str) -> &'static ptx::Kernels {
    // What files include is in the kernels of many.
    let header = |name: &str| name.ends_with(".cuh");
    let needed = sources.iter().filter(|(name, _)| name == file || header(name) || header(file));
    let needed: Vec<(&str, &str)> = needed.map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut kernels = compiled().clone();
    kernels.extend(ptx::parse(&compile::ptx(&needed, Arch(90)).unwrap()).unwrap());
    // A device's kernels live as long as the process.
    Box::leak(Box::new(kernels))
}

type Check = fn(Emulator);

fn selects(mut device: Emulator) {
    topk::check(&mut device, Element::F32, 5000, 64);
}

fn trains(device: Emulator) {
    let mut case = Case::new(20, 600, 300, 6);
    case.steps = 1;
    case.edit = |params, _| params.b_lat[200] = 6.0;
    case.agree_with(on(Box::new(device)), |_| ());
}

#[test]
fn what_is_wrong_in_the_compiled_kernels_is_told() {
    if nvrtc_only("defects planted before NVRTC") {
        return;
    }
    // Which one comes first is chance, where a barrier is missing.
    const ORDER: &[&str] = &["with nothing between", "read before it was written"];
    let cases: [(&str, Check, &str, &str, &[&str]); 8] = [
        (
            "topk_stream.cu",
            selects,
            "__syncthreads();\n        for (u32 slot = 0; slot < slots",
            "for (u32 slot = 0; slot < slots",
            ORDER,
        ),
        ("topk_stream.cu", selects, "__syncthreads();\n            bool last", "bool last", ORDER),
        (
            "topk_stream.cu",
            selects,
            "s.keys[atomicAdd(&s.held, 1u)] =",
            "s.keys[atomicAdd(&s.held, 1u) + 3800] =",
            &["lie outside"],
        ),
        (
            "topk_stream.cu",
            selects,
            "index[begin + rank] = j",
            "index[begin + rank + 40] = j",
            &["in live memory"],
        ),
        (
            "topk_stream.cu",
            selects,
            "They must be there before they are compared.\n    __syncthreads();",
            "They must be there before they are compared.\n    if (threadIdx.x < TOPK_THREADS - WARP) __syncthreads();",
            &["never come"],
        ),
        (
            "decode.cu",
            trains,
            "__syncthreads();\n        for (u32 t = threadIdx.x",
            "for (u32 t = threadIdx.x",
            ORDER,
        ),
        (
            "decode.cu",
            trains,
            "*column<P>(dy, pitch, c) = form(c, sum);",
            "float g = form(c, sum);\n            if (c != 3) *column<P>(dy, pitch, c) = g;",
            ORDER,
        ),
        ("latent_update.cu", trains, "__syncthreads();\n        const Tensor", "const Tensor", ORDER),
    ];
    for (file, check, from, to, reasons) in cases {
        let device = Emulator::of_ptx(kernels(&mutate(SOURCES, file, from, to), file));
        let told = catch_unwind(AssertUnwindSafe(|| check(device))).expect_err(to);
        let told = told.downcast_ref::<String>().map_or("", String::as_str);
        assert!(reasons.iter().any(|r| told.contains(r)) && told.contains(file), "{to}: {told}");
    }
}

#[test]
#[ignore = "takes five minutes"]
fn every_barrier_that_is_missing_is_told() {
    assert!(of_nvrtc(), "with SAE_TEST_DEVICE=ptx");
    assert!(!found("", || Emulator::of_ptx(compiled())));
    every_barrier(|file, sources| {
        let with = kernels(&sources, file);
        found(file, || Emulator::of_ptx(with))
    });
}
