//! The noise that kernels draw (`kernels/common.cuh`), beside the host's.

use crate::common::device::{of_nvrtc, on_card};
use crate::common::emulator::Emulator;
use cuda_on_cpu::ptx;
use topk_sae::backend::cuda::compile::{self, Arch};
use topk_sae::backend::cuda::device::{Arg, Device, Launch, Memory};
use topk_sae::backend::cuda::sources::SOURCES;
use topk_sae::noise;

const KERNELS: &str = r#"
#include "common.cuh"

// Four words of the noise of a row and group, and the noise of each.
extern "C" __global__ void noise(u64 seed, u64 step, u32 *words, float *draws) {
    u32 group = blockIdx.x, row = blockIdx.y, lane = threadIdx.x;
    Words w = uniform_words(seed, step, row, group, lane);
    for (u32 i = 0; i < 4; i++) {
        u64 at = ((u64)row * gridDim.x + group) * 128 + i * WARP + lane;
        words[at] = w.w[i];
        draws[at] = gumbel(unit(w.w[i]));
    }
}

extern "C" __global__ void gumbels(const float *u, float *out) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    out[at] = gumbel(u[at]);
}
"#;

/// A device with the kernels above; none on a card, which has the project's alone.
fn device() -> Option<Emulator> {
    if on_card() {
        eprintln!("NOT HERE: kernels that are a test's own");
        return None;
    }
    let common = SOURCES.iter().find(|s| s.0 == "common.cuh").unwrap();
    let sources = [*common, ("noise.cu", KERNELS)];
    let device = Emulator::with_sources(&sources);
    if !of_nvrtc() {
        return Some(device);
    }
    let kernels = ptx::parse(&compile::ptx(&sources, Arch(90)).unwrap()).unwrap();
    // A device's kernels live as long as the process.
    Some(Emulator(device.0.of_ptx(Box::leak(Box::new(kernels)))))
}

fn put<T: bytemuck::Pod>(device: &mut Emulator, values: &[T]) -> Memory {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let mut memory = Device::allocate(device, bytes.len(), "test").unwrap();
    Device::write(device, &mut memory, 0, bytes).unwrap();
    memory
}

fn get<T: bytemuck::Pod>(device: &mut Emulator, memory: &Memory) -> Vec<T> {
    let mut values = vec![T::zeroed(); memory.bytes() / size_of::<T>()];
    Device::read(device, memory, 0, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn launch(device: &mut Emulator, kernel: &'static str, grid: (u32, u32), block: u32, args: &[Arg]) {
    // SAFETY: the tests pass memory of the sizes that the kernels above name.
    unsafe { Device::launch(device, kernel, Launch { grid, block, shared: 0 }, args) }.unwrap();
}

fn pointer(memory: &Memory) -> Arg {
    Arg::Pointer(memory.address())
}

#[test]
fn kernels_draw_the_noise_of_the_host() {
    let Some(mut device) = device() else { return };
    let (seed, step, groups, rows) = (0x1234_5678_9abc_def0, 0x1_0000_0007, 3u32, 2u32);
    let n = (groups * rows * 128) as usize;
    let (words, draws) = (put(&mut device, &vec![0u32; n]), put(&mut device, &vec![0.0f32; n]));
    let args = [Arg::U64(seed), Arg::U64(step), pointer(&words), pointer(&draws)];
    launch(&mut device, "noise", (groups, rows), 32, &args);
    let (words, draws) = (get::<u32>(&mut device, &words), get::<f32>(&mut device, &draws));
    for at in 0..n {
        let (row, latent) = (at as u32 / (groups * 128), at as u32 % (groups * 128));
        let u = noise::uniform(seed, step, row, latent);
        assert_eq!(noise::unit(words[at]), u, "row {row}, latent {latent}");
        close_gumbel(u, draws[at]);
    }
}

/// Two float32 logarithms and their inputs, each rounded: 4 units in the last place, or near zero of 1.
fn close_gumbel(u: f32, got: f32) {
    let want = noise::gumbel_f64(u);
    let allowed = 4.0 * f64::from(f32::EPSILON) * want.abs().max(1.0);
    assert!((f64::from(got) - want).abs() <= allowed, "U = {u}: {got}, not {want}");
}

#[test]
fn gumbel_noise_is_exact_to_a_few_units_over_all_of_its_range() {
    let Some(mut device) = device() else { return };
    let edges = [0u32, 1, 2, 3, 8_388_607, 8_388_608, 8_388_609, (1 << 24) - 2, (1 << 24) - 1];
    let words = (0..4096 - edges.len() as u32).map(|i| i * 4099 % (1 << 24)).chain(edges);
    let u: Vec<f32> = words.map(|w| noise::unit(w << 8)).collect();
    let (u_dev, out) = (put(&mut device, &u), put(&mut device, &[0.0f32; 4096]));
    launch(&mut device, "gumbels", (16, 1), 256, &[pointer(&u_dev), pointer(&out)]);
    u.into_iter().zip(get::<f32>(&mut device, &out)).for_each(|(u, got)| close_gumbel(u, got));
}
