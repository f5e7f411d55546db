//! The emulation that the kernels are tested with: that it computes what a card would, and that it catches faults.
use cuda_on_cpu::build::sanitized;
use cuda_on_cpu::{Arg, Block, Element, Emulator, Launch, Matrix, Product, Result, mutate, sanitizer};
use half::{bf16, f16};

const TOY: &str = include_str!("emulator/toy.cu");

/// What the kernels of the project include, and kernels of this test.
fn sources() -> Vec<(&'static str, &'static str)> {
    vec![("common.cuh", include_str!("../../../kernels/common.cuh")), ("toy.cu", TOY)]
}

fn toy() -> Emulator {
    Emulator::new(&sources())
}

fn put<T: bytemuck::Pod>(device: &mut Emulator, values: &[T]) -> Block {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let memory = device.allocate(bytes.len(), "test").unwrap();
    device.write(memory.address(), bytes).unwrap();
    memory
}

fn get<T: bytemuck::Pod>(device: &mut Emulator, memory: &Block) -> Vec<T> {
    let mut values = vec![T::zeroed(); memory.bytes() / size_of::<T>()];
    device.read(memory.address(), bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn launch(
    device: &mut Emulator,
    kernel: &'static str,
    grid: (u32, u32),
    block: u32,
    args: &[Arg],
) -> Result<()> {
    with_shared(device, kernel, grid, block, 0, args)
}

fn with_shared(
    device: &mut Emulator,
    kernel: &'static str,
    grid: (u32, u32),
    block: u32,
    shared: u32,
    args: &[Arg],
) -> Result<()> {
    // SAFETY: the tests pass memory of the sizes that the toy kernels name; where they do not, they expect the
    // sanitizer to stop the process.
    unsafe { device.launch(kernel, Launch { grid, block, shared }, args) }
}

fn pointer(memory: &Block) -> Arg {
    Arg::Pointer(memory.address())
}

#[test]
fn a_block_sum_is_right_for_any_order_of_threads_and_blocks() {
    let mut device = toy();
    for (seed, block) in [(0, 32), (1, 64), (2, 256), (3, 1024)] {
        device.seed = seed;
        let n = 5 * block - 7;
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let (x_dev, out) = (put(&mut device, &x), put(&mut device, &[-1.0f32; 5]));
        launch(&mut device, "total", (5, 1), block, &[pointer(&x_dev), pointer(&out), Arg::U32(n)]).unwrap();
        let want: Vec<f32> = x.chunks(block as usize).map(|c| c.iter().sum()).collect();
        assert_eq!(get::<f32>(&mut device, &out), want);
    }
}

fn turned(device: &mut Emulator) -> Vec<f32> {
    let x: Vec<f32> = (0..6 * 96).map(|i| i as f32).collect();
    let (x, out) = (put(device, &x), put(device, &[0.0f32; 6 * 96]));
    with_shared(device, "turn_around_f32", (2, 3), 96, 96 * 4, &[pointer(&x), pointer(&out)]).unwrap();
    get(device, &out)
}

#[test]
fn dynamic_shared_memory_and_a_grid_in_two_dimensions_work() {
    let mut device = toy();
    let want: Vec<f32> = (0..6).flat_map(|b| (0..96).rev().map(move |i| (96 * b + i) as f32)).collect();
    assert_eq!(turned(&mut device), want);
    let x: Vec<bf16> = (0..64).map(|i| bf16::from_f32(i as f32)).collect();
    let (x, out) = (put(&mut device, &x), put(&mut device, &[bf16::ZERO; 64]));
    with_shared(&mut device, "turn_around_bf16", (1, 1), 64, 128, &[pointer(&x), pointer(&out)]).unwrap();
    let want: Vec<bf16> = (0..64).rev().map(|i| bf16::from_f32(i as f32)).collect();
    assert_eq!(get::<bf16>(&mut device, &out), want);
}

#[test]
fn a_missing_barrier_gives_a_wrong_result() {
    let right = turned(&mut toy());
    let line = "__syncthreads(); // every value must be there before another thread takes it";
    let mut broken = Emulator::new(&mutate(&sources(), "toy.cu", line, ""));
    for seed in 0..8 {
        broken.seed = seed;
        assert_ne!(turned(&mut broken), right, "seed {seed}");
    }
}

#[test]
fn warp_primitives_give_what_their_documentation_says() {
    let mut device = toy();
    let x: Vec<u32> = (0..64).map(|t| (t * 37 + 11) % 101).collect();
    let (x_dev, out) = (put(&mut device, &x), put(&mut device, &[0u32; 64 * 12]));
    for seed in 0..4 {
        device.seed = seed;
        launch(&mut device, "primitives", (1, 1), 64, &[pointer(&x_dev), pointer(&out)]).unwrap();
        let rows = get::<u32>(&mut device, &out);
        let bits = |v: &[u32], f: &dyn Fn(u32) -> bool| (0..32).fold(0, |a, i| a | u32::from(f(v[i])) << i);
        for (t, row) in rows.chunks(12).enumerate() {
            let (lane, warp) = (t % 32, &x[t / 32 * 32..][..32]);
            let at = |l: usize| warp[if l < 32 { l } else { lane }];
            let votes = |v: &[u32]| u32::from(v.contains(&7)) << 1 | 1;
            let part = if lane < 16 { warp[..16].iter().sum() } else { *warp[16..].iter().max().unwrap() };
            let want = [
                at(5),
                at(lane ^ 3),
                at(lane.wrapping_sub(2)),
                at(lane + 2),
                at(if lane % 8 < 5 { lane + 3 } else { lane }),
                bits(warp, &|v| v & 1 == 1),
                votes(warp),
                bits(warp, &|v| v % 4 == x[t] % 4),
                part,
                x.iter().map(|v| v & 1).sum(),
                votes(&x),
                at(lane ^ 1),
            ];
            assert_eq!(row, want, "thread {t}");
        }
    }
}

#[test]
fn atomics_count_every_thread_once() {
    let mut device = toy();
    let x: Vec<u32> = (0..1000).map(|i| i * i % 977).collect();
    let (x_dev, out) = (put(&mut device, &x), put(&mut device, &[0u32; 11]));
    let args = [pointer(&x_dev), pointer(&out), Arg::U32(1000), Arg::U32(10)];
    launch(&mut device, "histogram", (8, 1), 128, &args).unwrap();
    let mut want = [0; 11];
    x.iter().for_each(|v| want[(v % 10) as usize] += 1);
    want[10] = *x.iter().max().unwrap();
    assert_eq!(get::<u32>(&mut device, &out), want);
}

#[test]
fn every_half_precision_value_widens_as_the_half_crate_has_it() {
    let mut device = toy();
    let x: Vec<u16> = (0..=u16::MAX).collect();
    let (x_dev, out) = (put(&mut device, &x), put(&mut device, &vec![0.0f32; x.len()]));
    launch(&mut device, "widen_all", (256, 1), 256, &[pointer(&x_dev), pointer(&out)]).unwrap();
    for (bits, got) in x.into_iter().zip(get::<f32>(&mut device, &out)) {
        let want = f16::from_bits(bits).to_f32();
        assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}: {got} {want}");
    }
}

#[test]
fn shared_memory_that_nothing_wrote_is_nan_in_every_block() {
    let mut device = toy();
    let out = put(&mut device, &[0.0f32; 128]);
    with_shared(&mut device, "unwritten", (3, 1), 64, 256, &[pointer(&out)]).unwrap();
    let got = get::<f32>(&mut device, &out);
    assert!(got[64..].iter().all(|v| v.is_nan()), "dynamic");
    // With the sanitizers it is static storage, which keeps the last block's values.
    assert!(sanitized() || got[..64].iter().all(|v| v.is_nan()), "fixed");
}

fn refused(kernel: &'static str, block: u32, n: u32) -> String {
    let mut device = toy();
    let out = put(&mut device, &[0.0f32; 256]);
    let error = launch(&mut device, kernel, (2, 1), block, &[pointer(&out), Arg::U32(n)]).unwrap_err();
    // The device goes on after an error.
    launch(&mut device, "no_turns", (1, 1), 256, &[pointer(&out), Arg::U32(256)]).unwrap();
    error
}

#[test]
fn threads_that_do_not_meet_are_an_error_that_names_them() {
    let cases = [
        ("some_return", 64, "waits at __syncthreads (toy.cu:", "has returned"),
        ("two_barriers", 64, "waits at __syncthreads (toy.cu:", "another thread waits at toy.cu:"),
        ("absent_lane", 7, "waits at toy.cu:", "has returned"),
        ("lane_at_barrier", 7, "waits at toy.cu:", "waits at __syncthreads"),
        ("outside_its_mask", 7, "is not in its own mask 00000007", ""),
    ];
    for (kernel, n, first, second) in cases {
        let error = refused(kernel, 128, n);
        assert!(error.starts_with(&format!("kernel {kernel}, block (")), "{error}");
        assert!(error.contains(", thread ") && error.contains(first) && error.contains(second), "{error}");
    }
}

#[test]
fn a_trap_is_an_error() {
    let error = launch(&mut toy(), "traps", (1, 1), 64, &[Arg::U32(33)]).unwrap_err();
    assert_eq!(error, "kernel traps, block (0, 0), thread 33: __trap");
}

#[test]
fn wrong_arguments_and_launches_are_errors() {
    let mut device = toy();
    let out = put(&mut device, &[0.0f32; 32]);
    let (p, n) = (pointer(&out), Arg::U32(32));
    let cases: [(&'static str, u32, &[Arg], &str); 8] = [
        ("no_turns", 32, &[p], "takes 2 arguments, not 1"),
        ("no_turns", 32, &[p, Arg::U64(32)], "argument 1 is U64(32), not a u32"),
        ("no_turns", 32, &[Arg::U64(out.address()), n], "not a pointer"),
        ("no_turns", 32, &[Arg::Pointer(64), n], "do not lie in live memory"),
        ("no_turns", 33, &[p, n], "a card refuses"),
        ("no_turns", 2048, &[p, n], "a card refuses"),
        ("no_turns", 288, &[p, n], "launch bounds of 256"),
        ("nothing", 32, &[p, n], "there is no kernel nothing"),
    ];
    for (kernel, block, args, want) in cases {
        let error = launch(&mut device, kernel, (1, 1), block, args).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    drop(out);
    let error = launch(&mut device, "no_turns", (1, 1), 32, &[p, n]).unwrap_err();
    assert!(error.contains("do not lie in live memory"), "{error}");
}

#[test]
fn new_memory_is_zero_or_on_request_nan() {
    let mut device = toy();
    let memory = device.allocate(64, "test").unwrap();
    assert_eq!(get::<f32>(&mut device, &memory), [0.0; 16]);
    device.poison = true;
    let memory = device.allocate(64, "test").unwrap();
    assert!(get::<f32>(&mut device, &memory).iter().all(|v| v.is_nan()));
    assert!(get::<bf16>(&mut device, &memory).iter().all(|v| v.is_nan()));
}

#[test]
fn recorded_work_must_be_the_same_until_it_is_forgotten() {
    let mut device = toy();
    let out = put(&mut device, &[0.0f32; 32]);
    let queue = |device: &mut Emulator, n: u32| {
        device.begin_record().unwrap();
        launch(device, "no_turns", (1, 1), 32, &[pointer(&out), Arg::U32(n)]).unwrap();
        device.end_record("32 rows")
    };
    queue(&mut device, 32).unwrap();
    queue(&mut device, 32).unwrap();
    let error = queue(&mut device, 31).unwrap_err();
    assert!(error.contains("for 32 rows differs at place 0") && error.contains("U32(31)"), "{error}");
    device.forget();
    queue(&mut device, 31).unwrap();
}

fn matrix(memory: &Block, element: Element, rows: usize, cols: usize, stride: usize) -> Matrix {
    Matrix { address: memory.address(), element, rows, cols, stride }
}

#[test]
fn dense_products_take_strides_transposes_and_sums() {
    let mut device = toy();
    let (m, n, inner) = (3, 5, 4);
    let value = |i: usize, j: usize| (7 * i + 3 * j) as f32 % 5.0 - 2.0;
    for turn in 0..4 {
        let (turn_a, turn_b) = (turn & 1 == 1, turn & 2 == 2);
        let stored = |rows: usize, cols: usize| -> Vec<bf16> {
            (0..rows * (cols + 2)).map(|i| bf16::from_f32(value(i / (cols + 2), i % (cols + 2)))).collect()
        };
        let (ra, ca) = if turn_a { (inner, m) } else { (m, inner) };
        let (rb, cb) = if turn_b { (n, inner) } else { (inner, n) };
        let (a, b) = (put(&mut device, &stored(ra, ca)), put(&mut device, &stored(rb, cb)));
        let out = put(&mut device, &vec![1.0f32; m * (n + 1)]);
        let product = Product {
            a: matrix(&a, Element::Bf16, ra, ca, ca + 2),
            a_transposed: turn_a,
            b: matrix(&b, Element::Bf16, rb, cb, cb + 2),
            b_transposed: turn_b,
            out: matrix(&out, Element::F32, m, n, n + 1),
            add: turn > 1,
        };
        device.product(&product).unwrap();
        let got = get::<f32>(&mut device, &out);
        for (i, j) in (0..m).flat_map(|i| (0..n + 1).map(move |j| (i, j))) {
            let left = |l| if turn_a { value(l, i) } else { value(i, l) };
            let right = |l| if turn_b { value(j, l) } else { value(l, j) };
            let sum: f32 = (0..inner).map(|l| left(l) * right(l)).sum();
            let want = if j == n { 1.0 } else { sum + if turn > 1 { 1.0 } else { 0.0 } };
            assert_eq!(got[i * (n + 1) + j], want, "({i}, {j}), turn {turn}");
        }
    }
}

#[test]
fn products_and_copies_outside_memory_or_over_operands_are_errors() {
    let mut device = toy();
    let (a, out) = (put(&mut device, &[1.0f32; 16]), put(&mut device, &[0.0f32; 16]));
    let square = |memory: &Block, n: usize| matrix(memory, Element::F32, n, n, n);
    let mut product = |a_matrix: Matrix, out_matrix: Matrix| {
        let b = square(&a, 4);
        let product =
            Product { a: a_matrix, a_transposed: false, b, b_transposed: false, out: out_matrix, add: false };
        device.product(&product)
    };
    product(square(&a, 4), square(&out, 4)).unwrap();
    let shifted = Matrix { address: out.address() + 2, ..square(&out, 3) };
    let cases = [
        (square(&a, 5), square(&out, 4), "a dense product's a: 100 bytes"),
        (square(&a, 4), square(&out, 3), "does not fit"),
        (square(&a, 4), shifted, "out is not aligned"),
        (square(&a, 4), square(&a, 4), "writes over its operands"),
    ];
    for (a_matrix, out_matrix, want) in cases {
        let error = product(a_matrix, out_matrix).unwrap_err();
        assert!(error.contains(want), "{want}: {error}");
    }
    let end = out.address() + 60;
    let errors = [
        device.write(end, &[0; 5]),
        device.read(end, &mut [0; 5]),
        device.send(end, 5, &mut |_| ()),
        device.zero(end, 5),
    ];
    for error in errors {
        assert!(error.unwrap_err().contains("5 bytes from"));
    }
}

/// Runs in a process of its own, which must not survive it.
#[test]
fn fault_in_a_child() {
    let Ok(kernel) = std::env::var("SAE_EMULATOR_FAULT") else { return };
    let mut device = toy();
    let kernel = device.kernels().find(|k| **k == kernel).unwrap();
    let out = put(&mut device, &[0.0f32; 33]);
    let n = if kernel == "writes_past_global" { 2 } else { 1 };
    let _ = with_shared(&mut device, kernel, (1, 1), 32, 32 * 4, &[pointer(&out), Arg::U32(n)]);
    println!("survived");
}

#[test]
fn writes_past_the_end_are_stopped_by_the_sanitizer_which_names_the_line() {
    if sanitizer::inside() {
        return;
    }
    for kernel in ["writes_past_global", "writes_past_dynamic", "writes_past_fixed"] {
        let out = sanitizer::run(
            &["--exact", "fault_in_a_child", "--nocapture"],
            &[("SAE_EMULATOR_FAULT", kernel)],
        );
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && !String::from_utf8_lossy(&out.stdout).contains("survived"),
            "{text}"
        );
        let line = text.lines().find(|l| l.contains("#0 ")).unwrap_or_default();
        let found = text.contains("AddressSanitizer: ") || text.contains("runtime error: ");
        assert!(found && line.contains(kernel) && line.contains("toy.cu:"), "{text}");
    }
}

#[test]
fn all_of_this_holds_with_the_sanitizers() {
    sanitizer::run_all_but("all_of_this_holds_with_the_sanitizers");
}

/// `cargo test --release -p cuda-on-cpu --test emulator -- --ignored --nocapture`
#[test]
#[ignore = "prints times, proves nothing"]
fn times() {
    let mut device = toy();
    let out = put(&mut device, &vec![0.0f32; 1 << 20]);
    let mut time = |name: &str, kernel, grid, block, args: &[Arg], per: f64| {
        let start = std::time::Instant::now();
        launch(&mut device, kernel, (grid, 1), block, args).unwrap();
        println!("{name}: {:.1} ns", start.elapsed().as_secs_f64() * 1e9 / per);
    };
    for block in [32, 256, 1024] {
        let turns = f64::from(64 * block);
        for _ in 0..2 {
            let args = [pointer(&out), Arg::U32(50), Arg::U32(0)];
            time(&format!("{block} threads, a barrier"), "many_turns", 64, block, &args, turns * 100.0);
            let args = [pointer(&out), Arg::U32(0), Arg::U32(20)];
            time(&format!("{block} threads, a shuffle"), "many_turns", 64, block, &args, turns * 100.0);
        }
    }
    time(
        "a thread without turns",
        "no_turns",
        4096,
        256,
        &[pointer(&out), Arg::U32(1 << 20)],
        f64::from(1 << 20),
    );
    let (n_rows, d_in, n_latents) = (33, 100, 1000);
    let product = Product {
        a: matrix(&out, Element::F32, n_rows, d_in, d_in),
        a_transposed: false,
        b: Matrix { address: out.address() + (1 << 14), ..matrix(&out, Element::F32, n_latents, d_in, d_in) },
        b_transposed: true,
        out: Matrix {
            address: out.address() + (1 << 20),
            ..matrix(&out, Element::F32, n_rows, n_latents, n_latents)
        },
        add: false,
    };
    time("a launch of one block of 32", "no_turns", 1, 32, &[pointer(&out), Arg::U32(32)], 1.0);
    let start = std::time::Instant::now();
    device.product(&product).unwrap();
    println!("a product of {n_rows} x {d_in} x {n_latents}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
}
