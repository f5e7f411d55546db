//! The interpreter of PTX that the kernels are tested with: that it computes what a card would, and reports faults.
mod nvrtc;
#[path = "ptx/ops.rs"]
mod ops;

use cuda_on_cpu::Launch;
use cuda_on_cpu::ptx::{Counts, Grid, Kernel, Kernels, parse};
use nvrtc::nvrtc;
use std::sync::OnceLock;

/// What the kernels of the project include.
const HEADER: (&str, &str) = ("common.cuh", include_str!("../../../kernels/common.cuh"));

fn compiled(text: &str) -> Result<Kernels, String> {
    parse(&nvrtc::ptx(("toy.cu", text), HEADER))
}

fn kernel(name: &str) -> &'static Kernel {
    static ALL: OnceLock<Kernels> = OnceLock::new();
    &ALL.get_or_init(|| compiled(include_str!("ptx/toy.cu")).unwrap())[name]
}

/// Runs a kernel on `out`, `x` and `n`.
fn run<T: bytemuck::Pod, X: bytemuck::Pod>(
    name: &str,
    (blocks, threads): (u32, u32),
    out: &mut [T],
    x: &[X],
    n: u32,
    seed: u64,
) -> Result<Counts, String> {
    let mut live = vec![(out.as_mut_ptr() as u64, size_of_val(out)), (x.as_ptr() as u64, size_of_val(x))];
    let arguments = [live[0].0, live[1].0, n.into()];
    live.sort_unstable();
    let launch = Launch { grid: (blocks, 1), block: threads, shared: 0 };
    let grid = Grid { launch, first_block: 0, arguments: &arguments, live: &live, seed };
    // SAFETY: both slices outlive the call, and no kernel writes to `x`.
    unsafe { kernel(name).run(&grid) }
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

#[test]
fn sums_over_loops_and_barriers_are_right_in_any_order() {
    if !nvrtc() {
        return;
    }
    for seed in 0..6 {
        let x = ramp(1003);
        let mut out = [0.0f32; 5];
        run("total", (5, 128), &mut out, &x, 1003, seed).unwrap();
        let want = |b: usize| x.iter().skip(b).step_by(5).sum::<f32>();
        assert_eq!(out, std::array::from_fn(want), "seed {seed}");
    }
}

#[test]
fn logarithms_and_exponentials_of_the_compiler_are_right() {
    if !nvrtc() {
        return;
    }
    let edges = [0u32, 1, 2, 3, 8_388_607, 8_388_608, 8_388_609, (1 << 24) - 2, (1 << 24) - 1];
    let words = (0..4087).map(|i| i * 4099 % (1 << 24)).chain(edges);
    let u: Vec<f32> = words.map(|w| w as f32 / (1 << 24) as f32).collect();
    let mut out = vec![0.0f32; u.len()];
    run("gumbels", (16, 256), &mut out, &u, 4096, 0).unwrap();
    for (&u, got) in u.iter().zip(out) {
        // Two float32 logarithms and their inputs, each rounded.
        let want = -(1e-9 - (f64::from(u) + 1e-9).ln()).ln();
        let allowed = 4.0 * f64::from(f32::EPSILON) * want.abs().max(1.0);
        assert!((f64::from(got) - want).abs() <= allowed, "U = {u}: {got}, not {want}");
    }
    let x: Vec<f32> = (0..4096).map(|i| i as f32 / 23.0 - 90.0).collect();
    let mut out = vec![0.0f32; x.len()];
    run("exponentials", (16, 256), &mut out, &x, 4096, 0).unwrap();
    for (&x, got) in x.iter().zip(out) {
        // The programming guide gives 1 unit in the last place for expf; the smallest results lose bits.
        let want = f64::from(x).exp();
        let allowed = 2.0 * f64::from(f32::EPSILON) * want + 2e-38;
        assert!(
            (f64::from(got) - want).abs() <= allowed || f64::from(f32::MAX) < want,
            "exp {x}: {got}, not {want}"
        );
    }
}

#[test]
fn every_half_precision_value_widens_as_the_half_crate_has_it() {
    if !nvrtc() {
        return;
    }
    let x: Vec<u32> = (0..1 << 16).collect();
    let mut out = vec![0.0f32; x.len()];
    run("halves", (256, 256), &mut out, &x, 1 << 16, 0).unwrap();
    for (bits, got) in x.into_iter().zip(out) {
        let want = half::f16::from_bits(bits as u16).to_f32();
        assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}: {got} {want}");
    }
}

#[test]
fn flags_atomics_and_wide_stores_work_and_are_counted() {
    if !nvrtc() {
        return;
    }
    let x = Aligned(std::array::from_fn(|i| (i * i) as u32));
    let mut out = Aligned([0u32; 8 + 4 * 192]);
    let Aligned(x): &Aligned<[u32; 64]> = &x;
    let counts = run("flags", (3, 64), &mut out.0, &x[..], 1, 3).unwrap();
    assert_eq!(out.0[..4], [7, 192, 0, 0]);
    for (at, row) in out.0[8..].chunks(4).enumerate() {
        let v = x[at % 64];
        assert_eq!(row, [v, v + 1, v + 2, v + 3]);
    }
    // Of each of six warps: 128 bytes loaded, 512 stored in packs; the flag, which no thread of value 0 sets; the counter.
    assert_eq!(counts.loaded, 6 * 128);
    assert_eq!(counts.stored, 3 * 63 * 4 + 192 * 4 + 6 * 512);
    assert_eq!(counts.sectors, 6 * (4 + 1 + 1 + 16));
}

#[test]
fn warps_exchange_what_the_isa_says() {
    if !nvrtc() {
        return;
    }
    let x: Vec<u32> = (0..64).map(|t| (t * 37 + 11) % 101).collect();
    let mut out = vec![0u32; 4 * 64];
    run("lanes", (1, 64), &mut out, &x, 64, 5).unwrap();
    for t in 0..64 {
        let warp = &x[t / 32 * 32..][..32];
        let sum = |lane: usize| warp[..=lane].iter().sum::<u32>();
        let threes = (0..32).fold(0, |mask, lane| mask | u32::from(warp[lane].is_multiple_of(3)) << lane);
        let got = [out[t], out[64 + t], out[128 + t], out[192 + t]];
        assert_eq!(
            got,
            [sum(t % 32), sum(x[t] as usize % 32), threes, u32::from(x.contains(&77))],
            "thread {t}"
        );
    }
}

#[test]
fn lanes_in_one_bank_take_turns() {
    if !nvrtc() {
        return;
    }
    let x = ramp(32 * 33);
    let mut passes = |n: u32| {
        let counts = run("strides", (1, 32), &mut [0.0f32; 32], &x, n, 0).unwrap();
        (counts.passes - 33, counts.fewest_passes - 33)
    };
    assert_eq!([1, 2, 4, 32, 33, 0].map(&mut passes), [(1, 1), (2, 1), (4, 1), (32, 1), (1, 1), (1, 1)]);
}

#[test]
fn every_fault_is_told_with_its_place() {
    if !nvrtc() {
        return;
    }
    let cases: [(&str, &[&str]); 12] = [
        ("no_barrier", &["tile: ", "with nothing between"]),
        ("written_too_early", &["tile: ", "read", "written", "with nothing between"]),
        ("two_write", &["tile: written by thread"]),
        ("blocks_meet", &["of block 0", "of block 1", "with nothing between"]),
        ("read_and_replaced", &["byte 1024 of 4096", "block"]),
        ("past_shared", &["4 bytes at shared", "lie outside", "tile"]),
        ("past_global", &["4 bytes at 0x", "do not lie in live memory"]),
        ("not_aligned", &["is no multiple of 16 bytes"]),
        ("unwritten", &["byte ", "tile: read before it was written"]),
        ("some_return", &["threads wait for others that never come"]),
        ("two_barriers", &["threads wait for others that never come"]),
        ("absent_lane", &["threads wait for others that never come"]),
    ];
    let line = |name: &str| {
        let text = include_str!("ptx/toy.cu");
        text[..text.find(&format!("void {name}(")).unwrap()].lines().count()
    };
    for (name, wanted) in cases {
        for seed in 0..8 {
            let x: Aligned<[f32; 512]> = Aligned(ramp(512).try_into().unwrap());
            let error = run(name, (2, 256), &mut [0.0f32; 1024], &x.0[..], 256, seed);
            let error = error.expect_err(name);
            assert!(error.starts_with(&format!("{name}, block (")), "{error}");
            assert!(wanted.iter().all(|part| error.contains(part)), "{name}: {error}");
            // At a line of that kernel.
            let at = error
                .rsplit("toy.cu:")
                .next()
                .and_then(|at| at.parse().ok())
                .unwrap_or_else(|| panic!("{error}"));
            assert!((line(name)..line(name) + 10).contains(&at), "{error}");
        }
    }
}

/// At the start of a sector.
#[repr(align(32))]
struct Aligned<T>(T);

#[test]
fn launches_that_a_card_refuses_are_told() {
    if !nvrtc() {
        return;
    }
    let refused = |threads: u32| run("total", (1, threads), &mut [0.0f32], &[0.0f32], 1, 0).unwrap_err();
    for threads in [0, 33, 288] {
        assert!(refused(threads).contains("threads a block, where up to 256"), "{}", refused(threads));
    }
}

#[test]
fn an_instruction_that_is_not_known_is_named() {
    if !nvrtc() {
        return;
    }
    let text = "extern \"C\" __global__ void sleeps(float *x) { __nanosleep(100); x[0] = 1; }";
    let error = compiled(text).unwrap_err();
    assert!(error.contains("sleeps: `nanosleep.u32") && error.contains("not known"), "{error}");
}
