//! The card's ceilings, the kernels of a step one by one, and selection on rows that are hard to select from.

use crate::traffic::{self, Shape};
use crate::{Bench, PRECISIONS, Size, Start, median, must, phase, plan, values};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use topk_sae::backend::cuda::buffer::{Buffer, Values};
use topk_sae::backend::cuda::device::{Device, Element, Product};
use topk_sae::backend::cuda::launch::{self, CarriedOver, DeviceBatch};
use topk_sae::backend::cuda::params::StepParams;
use topk_sae::backend::cuda::timed::{Lap, Timed};
use topk_sae::backend::cuda::work::{Sizes, WorkBuffers};
use topk_sae::backend::{Backend, Phase, StepPlan};
use topk_sae::error::Result;
use topk_sae::noise::Noise;
use topk_sae::rows::Dtype;
use topk_sae::spec::{ModelSpec, Precision, Relaxation};

/// What the card does at best: bytes a second, and operations a second in each precision.
pub struct Ceilings {
    bandwidth: f64,
    rates: [f64; 3],
}

impl Ceilings {
    fn rate(&self, precision: Precision) -> f64 {
        PRECISIONS.iter().position(|&p| p == precision).map_or(f64::NAN, |i| self.rates[i])
    }
}

type Work1<'a> = &'a mut dyn FnMut(&mut dyn Device) -> Result<()>;

/// How long a device works before it is timed: the clock of a card falls while it has nothing to do.
const WARM_UP: Duration = Duration::from_millis(500);

/// Median seconds of `work`, after two that do not count, and more of these while the card warms up.
fn time(bench: &Bench, device: &mut dyn Device, repeats: usize, work: Work1<'_>) -> f64 {
    let began = Instant::now();
    let mut untimed = 0;
    while untimed < 2 || (!bench.emulated && began.elapsed() < WARM_UP) {
        must(device.timed(work));
        untimed += 1;
    }
    median((0..repeats).map(|_| must(device.timed(work))).collect())
}

fn element(precision: Precision) -> Element {
    if precision == Precision::Bf16 { Element::Bf16 } else { Element::F32 }
}

/// Random values in a buffer of `len`; a million different ones.
fn random(device: &mut dyn Device, len: usize) -> Result<Buffer<f32>> {
    let some = values(len.min(1 << 20), 3);
    let all: Vec<f32> = some.iter().copied().cycle().take(len).collect();
    let mut buffer = Buffer::zeros(device, len, "random values")?;
    buffer.write(device, &all)?;
    Ok(buffer)
}

/// Measures them: memory by a copy that narrows and by filling, arithmetic by a large square product.
pub fn ceilings(bench: &mut Bench) -> Ceilings {
    let (len, side) = if bench.emulated { (1 << 12, 64) } else { (1 << 28, 8192) };
    let mut device = bench.open(Precision::F32);
    let dev = device.as_mut();
    let from = must(random(dev, len));
    let mut to = must(Values::zeros(dev, Element::Bf16, len, "copy"));
    let copy = 6.0 * len as f64 / time(bench, dev, 10, &mut |dev| launch::narrow_copy(dev, &from, &mut to));
    let mut filled = must(Buffer::<f32>::zeros(dev, len, "filled"));
    let fill = 4.0 * len as f64 / time(bench, dev, 10, &mut |dev| filled.zero(dev, len));
    drop((from, to, filled));
    println!("\nmemory: narrowing copy {:.2} TB/s, filling {:.2} TB/s", copy * 1e-12, fill * 1e-12);
    let rates = PRECISIONS.map(|precision| {
        let mut device = bench.open(precision);
        let rate = must(product_rate(bench, device.as_mut(), element(precision), side));
        println!("product {side}^3 {precision}: {:.1} TFLOP/s", rate * 1e-12);
        rate
    });
    let found = Ceilings { bandwidth: copy.max(fill), rates };
    bench.keep(
        "ceilings",
        json!({ "copy_bytes_per_second": copy, "fill_bytes_per_second": fill, "product_side": side,
            "bf16_flops": rates[0], "tf32_flops": rates[1], "f32_flops": rates[2] }),
    );
    found
}

fn product_rate(bench: &Bench, device: &mut dyn Device, element: Element, side: usize) -> Result<f64> {
    let square = side * side;
    let wide = [random(device, square)?, random(device, square)?];
    let mut narrow = vec![];
    if element == Element::Bf16 {
        for from in &wide {
            let mut to = Values::zeros(device, element, square, "operand")?;
            launch::narrow_copy(device, from, &mut to)?;
            narrow.push(to);
        }
    }
    let out = Values::zeros(device, element, square, "product")?;
    let out = out.matrix(0, side, side, side)?;
    let operand = |i: usize| match narrow.get(i) {
        Some(values) => values.matrix(0, side, side, side),
        None => wide[i].matrix(0, side, side, side),
    };
    let (a, b) = (operand(0)?, operand(1)?);
    let product = Product { a, a_transposed: false, b, b_transposed: true, out, add: false };
    // SAFETY: all three are live buffers of side^2 values, and the result is memory of its own.
    let seconds = time(bench, device, 10, &mut |dev| unsafe { dev.product(&product) });
    Ok(2.0 * (square * side) as f64 / seconds)
}

/// Where the time of a step goes.
pub fn profiles(bench: &mut Bench, ceilings: &Ceilings) {
    for size in bench.sizes() {
        for tied in [true, false] {
            let mut start = Start::new(size, tied);
            for precision in [Precision::F32, Precision::Bf16] {
                for t in [1.0, 0.5] {
                    profile(bench, ceilings, &start, precision, t, "random rows");
                }
            }
            if !tied {
                for relaxation in [Relaxation::Lapsum, Relaxation::AnnealK] {
                    start.relaxation = relaxation;
                    profile(bench, ceilings, &start, Precision::Bf16, 0.5, "random rows");
                }
                start.relaxation = Relaxation::Softmax;
            }
            // Its list holds every row, and one block sums all of it.
            start.state.params.b_lat[size.m / 2] = 100.0;
            profile(bench, ceilings, &start, Precision::Bf16, 1.0, "one latent active on every row");
        }
    }
}

fn profile(bench: &mut Bench, c: &Ceilings, start: &Start, precision: Precision, t: f64, input: &str) {
    let repeats = if bench.emulated { 2 } else { 20 };
    let (device, laps) = Timed::new(bench.open(precision));
    let mut engine = start.engine(Box::new(device), precision);
    let mut steps: Vec<Vec<Lap>> = vec![];
    let began = Instant::now();
    for step in 0.. {
        laps.lock().expect("no other thread times").clear();
        start.queue(&mut engine, step, t);
        let laps = std::mem::take(&mut *laps.lock().expect("no other thread times"));
        must(engine.collect());
        // The first makes buffers; then the card warms up.
        if step > 0 && (bench.emulated || began.elapsed() > WARM_UP) {
            steps.push(laps);
        }
        if steps.len() == repeats {
            break;
        }
    }
    let total = median(steps.iter().map(|laps| laps.iter().map(|l| l.seconds).sum()).collect());
    let Size { n, d, m, .. } = start.size;
    let pitch = topk_sae::backend::cuda::tensors::pitch(d);
    let (spec, plan) = (start.spec(), plan(0, t));
    // Half of the scores are positive, so that a row has all the candidates it may have.
    let (entries, soft) = (spec.candidates(&plan), spec.phase(&plan) == Phase::Softmax);
    let shape = Shape { n, d, pitch, m, entries, element: element(precision), tied: start.tied, soft };
    let phase = phase(spec.warmup.relaxation, t);
    let what = format!("{} {} {precision} {phase}, {input}", start.size.text(), start.weights());
    println!("\n{what}: {:.0} us in launches\n", total * 1e6);
    print!("| kernel | launches | us a launch | us a step | of the step ");
    println!("| memory GB/s | of the ceiling | gathered GB/s | TFLOP/s | of the ceiling |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut rows = vec![];
    for (name, (launches, each, seconds, operations)) in by_kernel(&steps) {
        let moved = traffic::of(&name, &shape);
        let memory = moved.map(|b| b.memory / seconds);
        let gathered = moved.map(|b| b.gathered / seconds).filter(|&g| g > 0.0);
        let flops = (operations > 0.0).then_some(operations / seconds);
        let show = |v: Option<f64>, unit: f64, digits: usize| {
            v.map_or(String::new(), |v| format!("{:.digits$}", v * unit))
        };
        println!(
            "| {name} | {launches} | {:.1} | {:.1} | {:.1} % | {} | {} | {} | {} | {} |",
            each * 1e6,
            seconds * 1e6,
            100.0 * seconds / total,
            show(memory, 1e-9, 0),
            show(memory.map(|m| m / c.bandwidth), 1.0, 2),
            show(gathered, 1e-9, 0),
            show(flops, 1e-12, 1),
            show(flops.map(|f| f / c.rate(precision)), 1.0, 2),
        );
        rows.push(json!({
            "kernel": name, "launches_a_step": launches, "median_us_a_launch": each * 1e6,
            "us_a_step": seconds * 1e6, "share": seconds / total,
            "memory_bytes_per_second": memory, "memory_share": memory.map(|m| m / c.bandwidth),
            "gathered_bytes_per_second": gathered,
            "flops": flops, "flops_share": flops.map(|f| f / c.rate(precision)),
        }));
    }
    bench.keep(
        "profiles",
        json!({
            "size": start.size.text(), "weights": start.weights(), "precision": precision.to_string(),
            "phase": phase, "input": input, "us_in_launches": total * 1e6, "kernels": rows,
        }),
    );
}

/// Of each kernel: launches a step, median seconds of a launch, median over steps of its seconds and operations,
/// by falling time.
fn by_kernel(steps: &[Vec<Lap>]) -> Vec<(String, (usize, f64, f64, f64))> {
    let mut all: BTreeMap<&str, (Vec<f64>, Vec<f64>, f64)> = BTreeMap::new();
    for laps in steps {
        let mut step: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for lap in laps {
            all.entry(&lap.name).or_default().0.push(lap.seconds);
            let sum = step.entry(&lap.name).or_default();
            *sum = (sum.0 + lap.seconds, sum.1 + lap.operations);
        }
        for (name, (seconds, operations)) in step {
            let entry = all.entry(name).or_default();
            entry.1.push(seconds);
            entry.2 = operations;
        }
    }
    let mut rows: Vec<_> = all
        .into_iter()
        .map(|(name, (each, sums, operations))| {
            (name.to_owned(), (each.len() / steps.len(), median(each), median(sums), operations))
        })
        .collect();
    rows.sort_by(|a, b| b.1.2.total_cmp(&a.1.2));
    rows
}

/// Selection alone, on rows meant to slow it down.
pub fn selections(bench: &mut Bench, c: &Ceilings) {
    let sizes: &[(usize, usize, usize)] = match bench.emulated {
        true => &[(5, 3000, 64)],
        false => &[(4096, 16_384, 64), (512, 131_072, 64), (4096, 16_384, 512)],
    };
    println!("\n| selection | scores | us | GB/s | of the ceiling |\n|---|---|---|---|---|");
    for &(n, m, k) in sizes {
        for precision in [Precision::F32, Precision::Bf16] {
            let inputs: [(&str, &dyn Fn(usize) -> f32); 4] = [
                ("random", &|at| (at as f64 * 0.618_033_988_749).fract() as f32 - 0.5),
                ("ascending", &|at| (at % m + 1) as f32 / m as f32),
                ("descending", &|at| (m - at % m) as f32 / m as f32),
                ("all equal", &|_| 0.5),
            ];
            for (name, score) in inputs {
                let mut device = bench.open(precision);
                let seconds = must(selection(bench, device.as_mut(), precision, (n, m, k), score));
                let rate = (n * m * element(precision).size() + 8 * n * k) as f64 / seconds;
                let what = format!("N {n} M {m} k {k} {precision}");
                let (us, gb, share) = (seconds * 1e6, rate * 1e-9, rate / c.bandwidth);
                println!("| {what} | {name} | {us:.1} | {gb:.0} | {share:.2} |");
                bench.keep(
                    "selections",
                    json!({ "size": what, "scores": name, "us": us, "bytes_per_second": rate, "share": share }),
                );
            }
        }
    }
}

fn selection(
    bench: &Bench,
    device: &mut dyn Device,
    precision: Precision,
    (n, m, k): (usize, usize, usize),
    score: &dyn Fn(usize) -> f32,
) -> Result<f64> {
    let spec = ModelSpec::plain(k);
    let sizes = Sizes::new(&spec, 2, m, true, precision, Dtype::F32)?;
    let mut work = WorkBuffers::new(device, &sizes, n)?;
    let mut shared = CarriedOver::new(device, m, 1)?;
    let bias = Buffer::<f32>::zeros(device, m, "biases")?;
    // The random ones run on through the rows; the others begin anew in each.
    let scores: Vec<f32> = (0..n * sizes.score_pitch).map(score).collect();
    work.scores.write(device, &scores)?;
    let plan = StepPlan { step: 0, alpha: 1.0, tau: 1.0, lr: 0.0, l1: 0.0, noise: Noise::Philox { seed: 0 } };
    let params = StepParams::new(&spec, &plan, n, (sizes.d, &sizes.shard), 0);
    device.write(work.message.memory(), 0, bytemuck::bytes_of(&params))?;
    let batch = DeviceBatch { n, step: work.message.address(), rows: 0, data: 0, slot: 0, given: 0 };
    let b_lat = bias.address();
    Ok(time(bench, device, 10, &mut |dev| {
        launch::topk(dev, &sizes, &batch, b_lat, &mut shared, true, Phase::Hard, None, &mut work)
    }))
}
