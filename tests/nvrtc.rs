//! The kernels through NVIDIA's own compiler, which needs no GPU.

#![allow(clippy::unwrap_used)]

#[path = "common/compiler.rs"]
mod compiler;

use compiler::nvrtc;
use std::path::Path;
use topk_sae::backend::cuda::compile::resources::{markdown, resources, warnings};
use topk_sae::backend::cuda::compile::{Arch, Sources, cache, compile, supported};
use topk_sae::backend::cuda::{sources::SOURCES, work::STATIC_SHARED};

/// Every generation of cards that is promised.
const ARCHITECTURES: [Arch; 6] = [Arch(80), Arch(86), Arch(89), Arch(90), Arch(100), Arch(120)];

/// `common.cuh` and one file that uses it.
fn toy(text: &str) -> Vec<(&str, &str)> {
    let common = SOURCES.iter().find(|(name, _)| *name == "common.cuh").unwrap();
    vec![*common, ("toy.cu", text)]
}

const SUMS: &str = r#"
#include "common.cuh"
extern "C" __global__ void row_sums(const bf16 *x, float *out, u32 D) {
    __shared__ float scratch[32];
    extern __shared__ __align__(16) unsigned char extra[];
    float sum = 0;
    for (u32 j = threadIdx.x; j < D; j += blockDim.x) sum += widen(x[(u64)blockIdx.x * D + j]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum + gumbel(unit(philox(1, 2, 3, 4, 5, 6).w[0])) + extra[0];
}
"#;

#[test]
fn all_kernels_compile_for_every_architecture_without_a_warning_or_a_spill() {
    if !nvrtc() {
        return;
    }
    let roots = SOURCES.iter().filter(|(name, _)| name.ends_with(".cu")).count();
    let mut table = Vec::new();
    // Each takes ten seconds, side by side.
    let all = std::thread::scope(|scope| {
        ARCHITECTURES
            .map(|arch| scope.spawn(move || compile(SOURCES, arch, true).unwrap()))
            .map(|thread| thread.join().unwrap())
    });
    for (arch, compiled) in ARCHITECTURES.into_iter().zip(all) {
        assert!(!compiled.cubin.is_empty());
        assert!(warnings(&compiled.log).is_empty(), "{arch}:\n{}", compiled.log);
        let kernels = resources(&compiled.log);
        assert_eq!(kernels.is_empty(), roots == 0, "{arch}:\n{}", compiled.log);
        for k in &kernels {
            assert_eq!((k.spill_stores, k.spill_loads), (0, 0), "{arch}: {k:?}");
            // Those that launchers give dynamic shared memory besides.
            let dynamic = ["decode", "evaluate", "latent_update"];
            if dynamic.iter().any(|name| k.kernel.starts_with(name)) {
                assert!(k.shared as usize <= STATIC_SHARED, "{arch}: {k:?}");
            }
        }
        table.push((arch, kernels));
    }
    println!("{}", markdown(&table));
}

#[test]
fn a_kernel_on_the_common_header_compiles_and_its_needs_are_read() {
    if !nvrtc() {
        return;
    }
    for arch in ARCHITECTURES {
        let compiled = compile(&toy(SUMS), arch, true).unwrap();
        assert!(compiled.cubin.starts_with(b"\x7fELF"), "{arch}");
        assert!(warnings(&compiled.log).is_empty(), "{arch}:\n{}", compiled.log);
        let kernels = resources(&compiled.log);
        assert_eq!(kernels.len(), 1, "{}", compiled.log);
        assert_eq!((kernels[0].kernel.as_str(), kernels[0].shared), ("row_sums", 128), "{}", compiled.log);
        assert!(kernels[0].registers > 0, "{}", compiled.log);
    }
}

#[test]
fn a_kernel_that_spills_is_seen() {
    if !nvrtc() {
        return;
    }
    // 200 values live at once in at most 32 registers.
    let text = r#"
extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float *x, float *out) {
    float v[200];
#pragma unroll
    for (int i = 0; i < 200; i++) v[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 200; i++) sum += v[i] * v[(i * 7 + 3) % 200];
    out[threadIdx.x] = sum;
}
"#;
    let compiled = compile(&[("spills.cu", text)], Arch(90), true).unwrap();
    let kernels = resources(&compiled.log);
    assert_eq!(kernels.len(), 1, "{}", compiled.log);
    assert!(kernels[0].spill_stores > 0 && kernels[0].spill_loads > 0, "{}", compiled.log);
}

#[test]
fn a_kernel_that_does_not_compile_names_its_file_line_and_first_error() {
    if !nvrtc() {
        return;
    }
    let text =
        "#include \"common.cuh\"\nextern \"C\" __global__ void broken(float *x) {\n    x[0] = nowhere;\n}\n";
    let told = compile(&toy(text), Arch(90), false).unwrap_err().to_string();
    assert!(told.contains("toy.cu(3): error") && told.contains("\"nowhere\" is undefined"), "{told}");
    assert!(told.contains("sm_90") && !told.contains('\n'), "{told}");
    let path = told.split_once("the whole log is in ").unwrap().1.split(';').next().unwrap();
    assert!(std::fs::read_to_string(path).unwrap().contains("nowhere"));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_warning_is_seen() {
    if !nvrtc() {
        return;
    }
    let text = "extern \"C\" __global__ void careless(float *x) {\n    int unused = 3;\n    x[0] = 1;\n}\n";
    let compiled = compile(&[("careless.cu", text)], Arch(90), false).unwrap();
    assert_eq!(warnings(&compiled.log).len(), 1, "{}", compiled.log);
    assert!(compiled.log.contains("careless.cu(2)"), "{}", compiled.log);
}

#[test]
fn an_architecture_that_nvrtc_does_not_know_is_told() {
    if !nvrtc() {
        return;
    }
    let told = compile(&toy(SUMS), Arch(999), false).unwrap_err().to_string();
    assert!(told.contains("sm_999") && told.contains("install a newer one"), "{told}");
    let known = supported().unwrap();
    assert!(ARCHITECTURES.iter().all(|arch| known.contains(&arch.0)), "{known:?}");
    assert_eq!(Arch::of((9, 0)).unwrap(), Arch(90));
    assert!(Arch::of((99, 0)).unwrap_err().to_string().contains("99.0"));
}

fn only_entry(folder: &Path) -> std::path::PathBuf {
    let entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

#[test]
fn compiled_kernels_are_kept_rebuilt_when_damaged_and_differ_by_source() {
    if !nvrtc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let take = |sources: Sources<'_>| cache::compiled(sources, Arch(90), Some(folder.path())).unwrap();
    let sources = toy(SUMS);
    let first = take(&sources);
    assert!(!first.hit);
    let path = only_entry(folder.path());
    let again = take(&sources);
    assert!(again.hit && again.cubin == first.cubin);

    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let rebuilt = take(&sources);
    assert!(!rebuilt.hit && rebuilt.cubin.starts_with(b"\x7fELF"));
    assert!(take(&sources).hit, "the damaged entry was not replaced");

    let other = SUMS.replace("float sum = 0;", "float sum = 1;");
    let changed = take(&toy(&other));
    assert!(!changed.hit && changed.cubin != first.cubin);
}

#[test]
fn a_cache_that_cannot_be_written_costs_only_time() {
    if !nvrtc() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    // A file in the place of the folder cannot be written into, even by root.
    let kept = cache::compiled(&toy(SUMS), Arch(90), Some(&file.path().join("cache"))).unwrap();
    assert!(!kept.hit && kept.cubin.starts_with(b"\x7fELF"));
    assert!(!cache::compiled(&toy(SUMS), Arch(90), None).unwrap().hit);
}
