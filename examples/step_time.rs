//! Times training steps and prints one line of JSON: `{"ms": [...], "mode": "Hard" | "Support" | "Dense" | null,
//! "device": "..."}`. On the CPU each timed step gives a figure; on a GPU `--steps` steps are queued, waited for, and
//! give their mean, `--repeats` times. `benches/step_vs_torch.py` runs it in turns with others. With `--turns` one
//! process takes them all, as for `benches/gpu_vs_peers.py`: it says once that it is ready, `{"device": "..."}`, and
//! times anew for each line on its standard input.

use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use topk_sae::backend::cpu::fast::FastCpu;
use topk_sae::backend::{Backend, DeviceChoice, Selected, StepPlan, open};
use topk_sae::data::Embeddings;
use topk_sae::error::{Error, Result};
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::Noise;
use topk_sae::schedule::temperature;
use topk_sae::spec::{Init, ModelSpec, Precision};

/// Steps before the timed ones: buffers are made and the clock of the processor settles.
const UNTIMED: u64 = 2;
/// Time of untimed steps on a GPU, whose clock falls while it has nothing to do.
const WARM_UP: Duration = Duration::from_millis(500);

/// Times training steps.
#[derive(Parser)]
struct Args {
    /// Rows in a batch, N
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Inputs, D
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    d: u32,
    /// Latents, M
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    m: u32,
    /// Active latents
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// One tensor for encoder and decoder
    #[arg(long, conflicts_with = "untied")]
    tied: bool,
    /// Two tensors (the default)
    #[arg(long)]
    untied: bool,
    /// Fraction of the warm-up, from 0 on
    #[arg(long, default_value_t = 0.0, conflicts_with = "hard")]
    t: f64,
    /// The phase after the warm-up
    #[arg(long)]
    hard: bool,
    /// Timed steps; on a GPU, steps of each repeat
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Repeats on a GPU
    #[arg(long, default_value_t = 5)]
    repeats: u64,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Arithmetic of the dense products
    #[arg(long, default_value_t = Precision::F32)]
    precision: Precision,
    /// Threads; 0 takes all
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Rows and weights: x (N, D), w_enc (M, D), b_pre (D), b_lat (M), and w_dec (M, D) unless tied, all float32
    #[arg(long, value_name = "FILE.safetensors")]
    input: Option<PathBuf>,
    /// Times once for each line on standard input
    #[arg(long)]
    turns: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let t = if args.hard { 1.0 } else { args.t };
    if !(0.0..=1.0).contains(&t) {
        return Err(Error::Usage(format!("--t {t}: give a fraction from 0 to 1")));
    }
    if args.k > args.m {
        return Err(Error::Usage(format!("--k {} is more than --m {}", args.k, args.m)));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build();
    let pool = pool.map_err(|e| Error::Failed(format!("cannot start {} threads: {e}", args.threads)))?;
    let (rows, params) = match &args.input {
        Some(path) => read(path, args)?,
        None => {
            let init = Params::init(args.d as usize, args.m as usize, args.tied, &Init::Linear, 1);
            (normal_rows(args.n as usize, args.d as usize), init)
        }
    };
    let ids = (0..args.n).map(|n| n.to_string()).collect();
    let data = Arc::new(Embeddings::from_rows(ids, args.d as usize, rows)?);
    let (spec, state) = (ModelSpec::plain(args.k as usize), TrainState::start(params, false));
    let batch: Vec<u32> = (0..args.n).collect();
    let selected = args.device.select(true)?;
    if selected == Selected::Cpu {
        selected.check(args.precision)?;
        let mut backend = FastCpu::new(data, spec, state);
        let device = backend.device();
        let mut steps = Steps { batch, t, next: 0 };
        turns(args, &device, || {
            let ms = pool.install(|| steps.time(&mut backend, Duration::ZERO, (args.steps, 1)))?;
            Ok((ms, backend.last_mode().map(|mode| format!("{mode:?}"))))
        })
    } else {
        let mut backend = open(selected, data, spec, args.precision, state)?;
        let device = backend.device();
        let mut steps = Steps { batch, t, next: 0 };
        turns(args, &device, || {
            Ok((steps.time(backend.as_mut(), WARM_UP, (args.repeats, args.steps))?, None))
        })
    }
}

/// Prints what `time` gives: once, or for each line on standard input.
fn turns(
    args: &Args,
    device: &str,
    mut time: impl FnMut() -> Result<(Vec<f64>, Option<String>)>,
) -> Result<()> {
    let mut turn = || -> Result<()> {
        let (ms, mode) = time()?;
        println!("{}", serde_json::json!({ "ms": ms, "mode": mode, "device": device }));
        Ok(())
    };
    if !args.turns {
        return turn();
    }
    println!("{}", serde_json::json!({ "device": device }));
    for line in std::io::stdin().lines() {
        line.map_err(|e| Error::Failed(format!("cannot read standard input: {e}")))?;
        turn()?;
    }
    Ok(())
}

/// Steps of one batch at one point of the warm-up.
struct Steps {
    batch: Vec<u32>,
    t: f64,
    next: u64,
}

impl Steps {
    /// Queues a number of steps and waits for them.
    fn take(&mut self, backend: &mut dyn Backend, steps: u64) -> Result<()> {
        for _ in 0..steps {
            let (alpha, tau) = (self.t, temperature(self.t, 1.0, 0.05));
            let noise = Noise::Philox { seed: 0 };
            let plan = StepPlan { step: self.next, alpha, tau, lr: 1e-3, l1: 0.0, noise };
            backend.step(&self.batch, &plan)?;
            self.next += 1;
        }
        match backend.collect()?.iter().find(|s| !s.loss.is_finite()) {
            Some(bad) => Err(Error::Failed(format!(
                "the loss became {} before step {}: nothing to time",
                bad.loss, self.next
            ))),
            None => Ok(()),
        }
    }

    /// Milliseconds per step, of each of `repeats` runs of `steps` steps that are queued before they are waited for.
    /// Before them, untimed, comes one more run, in which buffers are made and kernels are loaded and recorded, and
    /// more of them until `warm_up` is over.
    fn time(
        &mut self,
        backend: &mut dyn Backend,
        warm_up: Duration,
        (repeats, steps): (u64, u64),
    ) -> Result<Vec<f64>> {
        let began = Instant::now();
        self.take(backend, UNTIMED.max(steps))?;
        while began.elapsed() < warm_up {
            self.take(backend, steps)?;
        }
        let run = |_| {
            let began = Instant::now();
            self.take(backend, steps)?;
            Ok(began.elapsed().as_secs_f64() * 1e3 / steps as f64)
        };
        (0..repeats).map(run).collect()
    }
}

/// Standard normal rows around one standard normal mean row, as the PyTorch side draws them.
fn normal_rows(n: usize, d: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    // Box-Muller.
    let mut normal = || {
        let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    let mean: Vec<f32> = (0..d).map(|_| normal()).collect();
    (0..n * d).map(|i| mean[i % d] + normal()).collect()
}

/// Rows and weights of a file.
fn read(path: &Path, args: &Args) -> Result<(Vec<f32>, Params)> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::Model { path: path.to_owned(), what: format!("not a safetensors file: {e}") })?;
    let (n, d, m) = (args.n as usize, args.d as usize, args.m as usize);
    let tensor = |name: &str, shape: &[usize]| {
        let fail = |what: String| Error::Model { path: path.to_owned(), what };
        let view = file.tensor(name).map_err(|_| fail(format!("no tensor `{name}`")))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            let (dtype, found) = (view.dtype(), view.shape());
            return Err(fail(format!("`{name}` is {dtype:?} {found:?}; need F32 {shape:?}")));
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(values.collect::<Vec<f32>>())
    };
    let params = Params {
        d_in: d,
        n_latents: m,
        w_enc: tensor("w_enc", &[m, d])?,
        w_dec: if args.tied { None } else { Some(tensor("w_dec", &[m, d])?) },
        b_pre: tensor("b_pre", &[d])?,
        b_lat: tensor("b_lat", &[m])?,
        threshold: None,
    };
    Ok((tensor("x", &[n, d])?, params))
}
