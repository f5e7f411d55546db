//! One comparison of the fast backend with the reference: a case, its start, and what must agree.

use crate::common::{embeddings, random_params, spec, values};
use std::sync::Arc;
use topk_sae::backend::cpu::{fast::FastCpu, reference::Reference, relax::Mode};
use topk_sae::backend::{Backend, Look, Pass, StepPlan, StepStats};
use topk_sae::data::Embeddings;
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::Noise;
use topk_sae::rows::Dtype;
use topk_sae::schedule::temperature;
use topk_sae::spec::{Activation, Forward, ModelSpec, Penalty, Prefixes, Relaxation, Warmup};

const EPS: f64 = f32::EPSILON as f64;

/// Rounding errors of float32 that a result may gather, in units of the last place of its tensor's largest
/// value. A dot product, a decoder sum and a gradient sum follow one another, of a few units each; where a small
/// residual is left of large terms they weigh more. The largest seen is 60; twice that for other vector widths.
const ROUNDINGS: f64 = 128.0;

/// `(r + g) / tau` is rounded before the exponential, so its absolute error is the relative error of a softmax
/// weight: perturbed scores of these cases reach 16, rounded four times (score, noise, sum, quotient). Where one
/// latent holds most of a row's weight, `dh - c` cancels and leaves that error some four times larger beside its
/// result; and up to M weights of 2^-24 that the support leaves out add up to the same. The largest seen is 345
/// at tau = 0.34, where 892 are allowed.
const ROUNDED_SCORE: f64 = 4.0 * 4.0 * 16.0;

/// Gradients are products of two factors: below this size a product leaves the range of float32. The loss is a
/// square of such values in float64.
const SMALLEST: f64 = 1e-18;

const LR: f64 = 1e-2;

#[derive(Clone)]
pub struct Case {
    pub n: usize,
    pub d: usize,
    pub m: usize,
    pub tied: bool,
    /// Fraction of the warm-up; 1 is the hard phase.
    pub t: f64,
    pub l1: f64,
    pub philox: bool,
    pub spec: ModelSpec,
    pub steps: u64,
    pub seed: u32,
    /// Latents that start dead: every `1 / share`-th.
    pub dead_every: Option<usize>,
    /// Changes the start weights and the rows.
    pub edit: fn(&mut Params, &mut [f32]),
    /// Type that the rows are kept in.
    pub dtype: Dtype,
    /// Scores of this case are exact in float32, so ties and zeros need no margin.
    pub exact: bool,
}

impl Case {
    pub fn new(n: usize, d: usize, m: usize, k: usize) -> Self {
        Self {
            n,
            d,
            m,
            tied: false,
            t: 1.0,
            l1: 0.0,
            philox: true,
            // Adam divides by |g| + eps: with the usual 1e-8 the rounding error of a gradient that is almost 0
            // moves its weight by the whole learning rate. Adam itself is worked by hand elsewhere.
            spec: spec(k).with(|spec| {
                spec.optimizer.adam_eps = 1e-3;
            }),
            steps: 2,
            seed: 0,
            dead_every: None,
            edit: |_, _| {},
            dtype: Dtype::F32,
            exact: false,
        }
    }

    pub fn name(&self) -> String {
        let Self { n, d, m, tied, t, l1, seed, .. } = self;
        let (Forward { k, normalize, .. }, Warmup { relaxation, pool }) =
            (self.spec.forward, self.spec.warmup);
        let over =
            if relaxation.has_candidates() { format!(" {relaxation:?} {pool}") } else { String::new() };
        let kind = match self.spec.forward.activation {
            Activation::Topk => String::new(),
            other => {
                format!(" {other} {} prefixes {}", self.spec.objective.penalty, self.spec.forward.prefixes)
            }
        };
        format!(
            "N {n} D {d} M {m} k {k}{over}{kind} t {t} tied {tied} normalize {normalize} l1 {l1} seed {seed}"
        )
    }

    pub fn start(&self) -> (Arc<Embeddings>, TrainState) {
        let seed = 100 * self.seed + 11;
        let mut params = random_params(self.d, self.m, self.tied, seed);
        let mut x = values(self.n * self.d, seed + 5);
        (self.edit)(&mut params, &mut x);
        if self.spec.forward.has_threshold() {
            // Some at 0, where the kernel reaches across it.
            let thresholds = values(self.m, seed + 9);
            params.threshold = Some(thresholds.iter().map(|t| (0.6 * t).max(0.0)).collect());
        }
        let mut state = TrainState::start(params, self.spec.optimizer.ema.is_some());
        if self.spec.objective.seeks_k {
            state.penalty_weight = vec![0.7];
        }
        if let Some(every) = self.dead_every {
            // At the very edge, from both sides.
            let (dead, alive) = (self.spec.objective.dead_after, self.spec.objective.dead_after - 1);
            let edge = |(j, idle): (usize, &mut u32)| *idle = if j % every == 0 { dead } else { alive };
            state.idle_rows.iter_mut().enumerate().for_each(edge);
        }
        let rows = Arc::unwrap_or_clone(embeddings(self.d, x)).kept_as(self.dtype);
        (Arc::new(rows), state)
    }

    pub fn rows(&self) -> Vec<u32> {
        (0..self.n as u32).collect()
    }

    pub fn uniform(&self, step: u64) -> Vec<f32> {
        let count = if self.philox { 0 } else { self.n * self.m };
        values(count, 77 + step as u32 + 100 * self.seed).iter().map(|v| 0.5 * (v + 1.0)).collect()
    }

    pub fn plan<'a>(&self, step: u64, uniform: &'a [f32]) -> StepPlan<'a> {
        let noise = if self.philox { Noise::Philox { seed: 5 } } else { Noise::Given(uniform) };
        let tau = temperature(self.t, 1.0, 0.05);
        StepPlan { step, alpha: self.t, tau, lr: LR, l1: self.l1, noise }
    }

    /// True where no decision (sign of a score, k-th against next largest) hangs on rounding. A case that is
    /// not so is drawn anew: the backends may then rightly differ.
    fn decided(&self, pass: &Pass, state: &TrainState) -> bool {
        let (idle, thresholds) = (&state.idle_rows, state.params.threshold.as_deref());
        let scale = pass.pre_acts.iter().fold(1.0f32, |a, z| a.max(z.abs()));
        let margin = 16.0 * f32::EPSILON * scale;
        let rank = |z: f32| self.spec.forward.activation.rank(f64::from(z)) as f32;
        let gap = |mut z: Vec<f32>, k: usize| {
            z.iter_mut().for_each(|z| *z = rank(*z));
            z.sort_by(|a, b| b.total_cmp(a));
            let k = if self.spec.forward.activation.is_per_row() { k } else { 0 };
            k == 0 || k >= z.len() || z[k - 1] < 0.0 || z[k - 1] - z[k] > margin
        };
        let dead = |z: &[f32]| {
            let pairs = z.iter().zip(idle);
            pairs
                .filter(|&(_, &idle)| idle >= self.spec.objective.dead_after)
                .map(|(&z, _)| z)
                .collect::<Vec<f32>>()
        };
        let batch = self.spec.forward.activation == Activation::BatchTopk;
        let all = |k: usize| {
            let mut z: Vec<f32> = pass.pre_acts.clone();
            z.sort_by(|a, b| b.total_cmp(a));
            let places = k * self.n;
            !batch || places >= z.len() || z[places - 1] < 0.0 || z[places - 1] - z[places] > margin
        };
        let reach = 0.5 * self.spec.objective.bandwidth as f32;
        let beside = |z: f32, t: f32| [t, t - reach, t + reach].iter().all(|edge| (z - edge).abs() > margin);
        let clear = match thresholds {
            Some(t) if !batch => {
                pass.pre_acts.chunks_exact(self.m).all(|z| z.iter().zip(t).all(|(&z, &t)| beside(z, t)))
            }
            _ => all(self.spec.forward.k) && all(self.spec.candidates(&self.plan(0, &[]))),
        };
        self.exact
            || clear
                && pass.pre_acts.chunks_exact(self.m).all(|z| {
                    z.iter().all(|z| z.abs() > margin)
                        && gap(z.to_vec(), self.spec.forward.k)
                        && gap(z.to_vec(), self.spec.candidates(&self.plan(0, &[])))
                        && gap(dead(z), self.spec.objective.aux_k)
                })
    }

    /// What the reference does, step by step; `None` where a decision hangs on rounding.
    fn reference(&self) -> Option<Vec<Record>> {
        let (data, state) = self.start();
        let mut backend = Reference::new(data, self.spec.clone(), state);
        let mut records = vec![];
        for step in 0..self.steps {
            let uniform = self.uniform(step);
            let plan = self.plan(step, &uniform);
            let pass = backend.inspect(&self.rows(), &plan).unwrap();
            if !self.decided(&pass, &backend.state().unwrap()) {
                return None;
            }
            let stats = backend.step_now(&self.rows(), &plan).unwrap();
            records.push(Record { pass, stats, state: backend.state().unwrap().into_owned() });
        }
        Some(records)
    }

    /// The fast backend beside the reference; returns how it held its codes.
    #[allow(dead_code)] // Each test file that takes this one as a module has backends of its own.
    pub fn agree(self) -> Vec<Mode> {
        let mut modes = vec![];
        self.agree_with(
            |data, spec, state| FastCpu::new(data, spec, state),
            |fast| modes.extend(fast.last_mode()),
        );
        modes
    }

    /// A backend beside the reference; `after` sees it after each step.
    pub fn agree_with<B: Look>(
        mut self,
        make: impl FnOnce(Arc<Embeddings>, ModelSpec, TrainState) -> B,
        mut after: impl FnMut(&B),
    ) {
        let first = self.seed;
        let records = loop {
            if let Some(records) = self.reference() {
                break records;
            }
            self.seed += 1;
            assert!(self.seed < first + 40, "{}: no draw without a near tie", self.name());
        };
        let (data, state) = self.start();
        let mut backend = make(data, self.spec.clone(), state);
        for (step, want) in records.iter().enumerate() {
            let uniform = self.uniform(step as u64);
            let plan = self.plan(step as u64, &uniform);
            // Candidates are standardised by their own spread, which makes a score's rounding some eight times larger.
            let spread = match self.spec.warmup.relaxation {
                Relaxation::Lapsum => 8.0,
                _ => 1.0,
            };
            let sharpness = if plan.soft() { spread * ROUNDED_SCORE / plan.tau } else { 0.0 };
            let check = Check { what: format!("{} step {step}", self.name()), c: ROUNDINGS + sharpness };
            check.pass(&backend.inspect(&self.rows(), &plan).unwrap(), &want.pass);
            check.stats(
                &backend.step_now(&self.rows(), &plan).unwrap(),
                &want.stats,
                self.spec.optimizer.clip_norm.is_some(),
            );
            check.state(&backend.state().unwrap(), &want.state, self.spec.optimizer.adam_eps);
            after(&backend);
        }
    }
}

/// Exact ties: small multiples of 1/4 make every score exact whatever the order of its sum. Each encoder row stands
/// there ten times, and the rows are all the same but two.
pub fn with_ties() -> Case {
    let mut case = Case::new(17, 4, 70, 9);
    case.spec.forward.normalize = false;
    case.edit = |params, x| {
        let quarter = |i: usize| (i * 7 % 11) as f32 * 0.25 - 1.0;
        params.w_enc.iter_mut().enumerate().for_each(|(i, w)| *w = quarter(i % 28));
        params.b_pre.fill(0.25);
        params.b_lat.fill(0.0);
        x.iter_mut().enumerate().for_each(|(i, x)| *x = quarter(i % 4 + 20 * usize::from(i / 4 == 3)));
    };
    // Steps part the twins by rounding, so only the first is compared.
    (case.exact, case.steps) = (true, 1);
    case
}

/// Cases of every relaxation over candidates: awkward sizes, rows with fewer positive scores than k, all latents as
/// candidates; options take turns.
pub fn over_candidates(phases: &[f64]) -> Vec<Case> {
    let mut cases = vec![];
    for relaxation in [Relaxation::Lapsum, Relaxation::AnnealK] {
        for &t in phases {
            for (m, k, pool) in [(7, 1, 3), (33, 5, 33), (257, 5, 40), (1000, 32, 96), (300, 3, 300)] {
                let i = cases.len();
                let mut case = Case::new([1, 15, 17, 33][i % 4], [2, 31, 33, 100][i / 3 % 4], m, k);
                (case.t, case.tied, case.philox) = (t, i % 2 > 0, i % 3 > 0);
                (case.spec.warmup.relaxation, case.spec.warmup.pool) = (relaxation, pool);
                match i % 5 {
                    0 => case.l1 = 0.4,
                    1 => (case.spec.objective.aux_k, case.dead_every) = (3, Some(4)),
                    2 => case.spec.optimizer.unit_norm_decoder = true,
                    3 => case.spec.optimizer.clip_norm = Some(1e-3),
                    _ => case.spec.forward.normalize = false,
                }
                cases.push(case);
            }
        }
    }
    cases
}

/// Cases of codes with signs: awkward sizes, tied and not; options take turns.
pub fn signed() -> Vec<Case> {
    let mut cases = vec![];
    for (m, k) in [(1, 1), (7, 3), (33, 33), (257, 5), (1000, 32), (3000, 40)] {
        for tied in [false, true] {
            let i = cases.len();
            let mut case = Case::new([1, 15, 17, 33][i % 4], [2, 31, 33, 100][i / 3 % 4], m, k);
            case.tied = tied;
            case.spec.forward.activation = Activation::AbsTopk;
            case.spec.warmup.relaxation = Relaxation::None;
            match i % 4 {
                0 => case.l1 = 0.4,
                1 => (case.spec.objective.aux_k, case.dead_every, case.l1) = (3, Some(4), 0.2),
                2 => case.spec.optimizer.unit_norm_decoder = true,
                _ => case.spec.optimizer.clip_norm = Some(1e-3),
            }
            cases.push(case);
        }
    }
    cases
}

/// A code with signs, an L1 part and prefixes.
#[allow(dead_code)] // As above.
pub fn signed_with_prefixes() -> Case {
    let mut case = Case::new(17, 33, 257, 9);
    case.spec.forward.activation = Activation::AbsTopk;
    case.spec.warmup.relaxation = Relaxation::None;
    (case.spec.forward.prefixes, case.l1) = (with_ends(257, 1), 0.4);
    case
}

/// Cases of the activations without places per row: awkward sizes, tied and not; options take turns. With and without
/// prefixes, the last of which are those of one latent each.
#[allow(dead_code)] // As above.
pub fn unplaced(activation: Activation) -> Vec<Case> {
    let penalties: &[Penalty] = match activation {
        Activation::JumpRelu => &[Penalty::L0Target, Penalty::L0, Penalty::L0Rows],
        Activation::Relu => &[Penalty::L1],
        _ => &[Penalty::MeanCode],
    };
    let mut cases = vec![];
    for (m, k) in [(1, 1), (7, 3), (33, 33), (257, 5), (300, 32), (700, 40)] {
        for tied in [false, true] {
            for prefixed in [false, true] {
                let i = cases.len();
                let mut case = Case::new([1, 15, 17, 33][i % 4], [2, 31, 33, 100][i / 3 % 4], m, k);
                case.tied = tied;
                case.spec.forward.activation = activation;
                case.spec.forward.inference = activation.inference();
                case.spec.warmup.relaxation = Relaxation::None;
                case.spec.objective.penalty = penalties[i % penalties.len()];
                case.spec.objective.bandwidth = [0.1, 0.5][i % 2];
                case.spec.objective.seeks_k = activation == Activation::Relu && i % 3 == 0;
                case.l1 = if activation == Activation::BatchTopk { 0.0 } else { 0.3 };
                if prefixed {
                    case.spec.forward.prefixes = with_ends(m, i);
                }
                match i / 2 % 5 {
                    0 => case.spec.optimizer.ema = Some(0.9),
                    1 => (case.spec.objective.aux_k, case.dead_every) = (3, Some(4)),
                    2 => case.spec.optimizer.unit_norm_decoder = true,
                    3 => case.spec.optimizer.clip_norm = Some(1e-3),
                    _ => case.spec.forward.normalize = false,
                }
                cases.push(case);
            }
        }
    }
    cases
}

/// Prefixes of M latents.
#[allow(dead_code)] // As above.
pub fn with_ends(m: usize, i: usize) -> Prefixes {
    let mut ends: Vec<u32> = match i % 3 {
        0 => Prefixes::of(m).ends().to_vec(),
        1 => vec![1, (m / 2) as u32, m as u32],
        _ => (0..16).map(|p| (m + p - 15.min(m - 1)) as u32).filter(|&end| end <= m as u32).collect(),
    };
    ends.retain(|&end| end > 0);
    ends.dedup();
    Prefixes::new(&ends).unwrap()
}

struct Record {
    pass: Pass,
    stats: StepStats,
    state: TrainState,
}

/// A comparator: |got - want| <= c eps max|want|.
pub struct Check {
    pub what: String,
    pub c: f64,
}

impl Check {
    /// Sums cancel, so the error of a value is that of its terms: the tensor's largest value measures them.
    pub fn tensor(&self, name: &str, got: &[f32], want: &[f32]) {
        self.scaled(name, got, want, 0.0);
    }

    /// The same where the terms are known to be as large as `terms`.
    fn scaled(&self, name: &str, got: &[f32], want: &[f32], terms: f64) {
        assert_eq!(got.len(), want.len(), "{}: {name}: length", self.what);
        let scale = want.iter().fold(terms, |a, v| a.max(f64::from(v.abs())));
        let allowed = self.c * EPS * scale + SMALLEST;
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            let off = (f64::from(g) - f64::from(w)).abs();
            let units = off / (EPS * scale);
            assert!(
                off <= allowed,
                "{}: {name}[{i}] = {g}, not {w} ({units:.0} units of {scale})",
                self.what
            );
        }
    }

    pub fn number(&self, name: &str, got: f64, want: f64) {
        let off = (got - want).abs();
        assert!(
            off <= self.c * EPS * want.abs() + SMALLEST * SMALLEST,
            "{}: {name} = {got}, not {want}",
            self.what
        );
    }

    pub fn params(&self, name: &str, got: &Params, want: &Params) {
        for ((tensor, _, got), (_, _, want)) in got.tensors().iter().zip(want.tensors()) {
            self.tensor(&format!("{name} {tensor}"), got, want);
        }
    }

    pub fn pass(&self, got: &Pass, want: &Pass) {
        self.number("loss", got.stats.loss, want.stats.loss);
        self.number("mse", got.stats.mse, want.stats.mse);
        self.number("l1", got.stats.l1, want.stats.l1);
        self.number("aux", got.stats.aux, want.stats.aux);
        self.tensor("z", &got.pre_acts, &want.pre_acts);
        self.tensor("h", &got.code, &want.code);
        self.tensor("y", &got.recon, &want.recon);
        self.tensor("grad_z", &got.grad_pre_acts, &want.grad_pre_acts);
        self.params("gradient", &got.grads, &want.grads);
    }

    fn stats(&self, got: &StepStats, want: &StepStats, clipped: bool) {
        self.number("step loss", got.loss, want.loss);
        self.number("step mse", got.mse, want.mse);
        self.number("step l1", got.l1, want.l1);
        self.number("step aux", got.aux, want.aux);
        if clipped {
            self.number("gradient norm", got.grad_norm, want.grad_norm);
        }
    }

    fn state(&self, got: &TrainState, want: &TrainState, adam_eps: f64) {
        assert_eq!(got.step, want.step, "{}", self.what);
        assert_eq!(got.idle_rows, want.idle_rows, "{}: idle rows", self.what);
        self.params("moment 1", &got.m, &want.m);
        // A square is twice as wrong as its root.
        let check = Check { what: self.what.clone(), c: 2.0 * self.c };
        check.params("moment 2", &got.v, &want.v);
        self.moved("weights", &got.params, want, adam_eps);
        assert_eq!(got.ema.is_some(), want.ema.is_some());
        if let Some(average) = &got.ema {
            let want = TrainState { params: want.ema.clone().unwrap(), ..want.clone() };
            self.moved("average", average, &want, adam_eps);
        }
    }

    /// Weights: a gradient that is off by `e` moves its weight by at most `lr e / adam_eps`.
    fn moved(&self, name: &str, got: &Params, want: &TrainState, adam_eps: f64) {
        for (((tensor, _, got), (_, _, want)), (_, _, m)) in
            got.tensors().iter().zip(want.params.tensors()).zip(want.m.tensors())
        {
            // The first moment is (1 - beta1) g and more from the second step on.
            let grad = 10.0 * m.iter().fold(0.0f64, |a, v| a.max(f64::from(v.abs())));
            self.scaled(&format!("{name} {tensor}"), got, want, LR * grad / adam_eps);
        }
    }
}
