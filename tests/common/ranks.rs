//! Ranks that are threads of one process, each with a device of its own; and the backend that all of them are together.

use std::borrow::Cow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use topk_sae::backend::cuda::device::{Device, Memory};
use topk_sae::backend::cuda::engine::Engine;
use topk_sae::backend::cuda::ranks::{Number, Ranks, Shard, Span};
use topk_sae::backend::{Backend, Codes, EvalSums, Look, Pass, StepPlan, StepStats};
use topk_sae::error::{Error, Result};
use topk_sae::model::{Fill, Params, TrainState, Weights};
use topk_sae::rows::RowSource;
use topk_sae::spec::{ModelSpec, Precision};

/// What a rank brings to a meeting: what it wants of it, and its bytes.
type Brought = (String, Vec<u8>);

/// Where all ranks meet, one meeting after another.
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    brought: Vec<Option<Brought>>,
    result: Option<Arc<Vec<Brought>>>,
    left: usize,
    gone: bool,
}

impl Meeting {
    fn new(ranks: usize) -> Self {
        let state = State { brought: vec![None; ranks], result: None, left: 0, gone: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// What all ranks brought; an error where one of them is gone or does not come.
    fn hold(&self, rank: usize, brought: Brought) -> Result<Arc<Vec<Brought>>> {
        let failed = |why: &str| Error::Failed(format!("rank {rank}: {why}"));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The meeting before must have been left by all.
        while state.result.is_some() && !state.gone {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.brought[rank] = Some(brought);
        if state.brought.iter().all(Option::is_some) {
            state.result = Some(Arc::new(state.brought.iter_mut().map(|b| b.take().unwrap()).collect()));
            self.changed.notify_all();
        }
        loop {
            if state.gone {
                return Err(failed("another rank is gone"));
            }
            if let Some(result) = state.result.clone() {
                state.left += 1;
                if state.left == state.brought.len() {
                    (state.left, state.result) = (0, None);
                    self.changed.notify_all();
                }
                return Ok(result);
            }
            let (next, wait) = self
                .changed
                .wait_timeout(state, Duration::from_secs(60))
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            if wait.timed_out() {
                state.gone = true;
                return Err(failed("another rank did not come"));
            }
        }
    }

    fn leave_for_good(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).gone = true;
        self.changed.notify_all();
    }
}

/// A rank that is a thread.
pub struct ThreadRank {
    rank: usize,
    count: usize,
    meeting: Arc<Meeting>,
    /// Which sum, counted from 0, this rank leaves out of what it has: a planted defect.
    pub forgets: Option<usize>,
    /// Bytes that it has brought to sums and to gatherings.
    pub brought: Arc<Mutex<(u64, u64)>>,
    sums: usize,
}

impl ThreadRank {
    /// All of `count` ranks.
    pub fn all(count: usize) -> Vec<Self> {
        let meeting = Arc::new(Meeting::new(count));
        (0..count)
            .map(|rank| Self {
                rank,
                count,
                meeting: meeting.clone(),
                forgets: None,
                brought: Arc::default(),
                sums: 0,
            })
            .collect()
    }

    fn bring(&self, device: &mut dyn Device, what: &str, spans: &[Span]) -> Result<Arc<Vec<Brought>>> {
        let mut bytes = vec![];
        for span in spans {
            let memory = Memory::new(span.address, span.len * span.number.size(), "a span", Box::new(|_| {}));
            let mut own = vec![0; memory.bytes()];
            device.read(&memory, 0, &mut own)?;
            bytes.extend(own);
        }
        let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        *(if what == "sum" { &mut brought.0 } else { &mut brought.1 }) += bytes.len() as u64;
        drop(brought);
        let shapes: Vec<(usize, Number)> = spans.iter().map(|span| (span.len, span.number)).collect();
        let all = self.meeting.hold(self.rank, (format!("{what} {shapes:?}"), bytes))?;
        let (first, own) = (&all[0].0, &all[self.rank].0);
        assert_eq!(first, own, "rank 0 and rank {} want different things", self.rank);
        Ok(all)
    }
}

fn write(device: &mut dyn Device, address: u64, bytes: &[u8]) -> Result<()> {
    let mut memory = Memory::new(address, bytes.len(), "a span", Box::new(|_| {}));
    device.write(&mut memory, 0, bytes)
}

fn total<T: bytemuck::Pod + std::ops::Add<Output = T>>(parts: &[&[u8]]) -> Vec<u8> {
    let values =
        |part: &[u8]| part.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>).collect();
    let mut sums: Vec<T> = values(parts[0]);
    for part in &parts[1..] {
        sums.iter_mut().zip(values(part)).for_each(|(sum, value)| *sum = *sum + value);
    }
    bytemuck::cast_slice(&sums).to_vec()
}

impl Ranks for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    unsafe fn sum(&mut self, device: &mut dyn Device, spans: &[Span]) -> Result<()> {
        let all = self.bring(device, "sum", spans)?;
        let mut at = 0;
        for span in spans {
            let len = span.len * span.number.size();
            let parts: Vec<&[u8]> = all.iter().map(|(_, bytes)| &bytes[at..at + len]).collect();
            let sums = match span.number {
                Number::F32 => total::<f32>(&parts),
                Number::F64 => total::<f64>(&parts),
                Number::U32 => total::<u32>(&parts),
            };
            let forgotten = self.forgets == Some(self.sums);
            write(device, span.address, if forgotten { parts[self.rank] } else { &sums })?;
            self.sums += 1;
            at += len;
        }
        Ok(())
    }

    unsafe fn gather(&mut self, device: &mut dyn Device, spans: &[(Span, u64)]) -> Result<()> {
        let own: Vec<Span> = spans.iter().map(|(span, _)| *span).collect();
        let all = self.bring(device, "gather", &own)?;
        let mut at = 0;
        for (span, to) in spans {
            let len = span.len * span.number.size();
            let values: Vec<u8> = all.iter().flat_map(|(_, bytes)| &bytes[at..at + len]).copied().collect();
            write(device, *to, &values)?;
            at += len;
        }
        Ok(())
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        self.meeting.leave_for_good();
    }
}

/// All ranks of a run as one backend: what it is asked, all are asked at once, each in a thread.
pub struct Together {
    engines: Vec<Engine>,
    shards: Vec<Shard>,
    state: Option<TrainState>,
}

impl Together {
    /// `devices` with a share each; `edit` may spoil a rank.
    pub fn new(
        devices: Vec<Box<dyn Device>>,
        data: &Arc<impl RowSource + 'static>,
        spec: &ModelSpec,
        precision: Precision,
        state: &TrainState,
        edit: impl Fn(&mut ThreadRank),
    ) -> Result<Self> {
        let (count, all) = (devices.len(), state.params.n_latents);
        let shards = (0..count).map(|rank| Shard::of(rank, count, all)).collect::<Result<Vec<Shard>>>()?;
        let ranks = ThreadRank::all(count);
        let made: Vec<Result<Engine>> = std::thread::scope(|scope| {
            let threads: Vec<_> = devices
                .into_iter()
                .zip(ranks)
                .zip(&shards)
                .map(|((device, mut rank), shard)| {
                    edit(&mut rank);
                    let own = state.of_latents(shard.latents());
                    let (data, spec) = (data.clone(), spec.clone());
                    scope.spawn(move || {
                        let name = format!("rank {}", rank.rank);
                        Engine::of_rank(name, device, data, spec, precision, &own, all, Box::new(rank))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        Ok(Self { engines: made.into_iter().collect::<Result<_>>()?, shards, state: None })
    }

    /// What `ask` gives of every rank, in their order.
    fn ask<T: Send>(&mut self, ask: impl Fn(usize, &mut Engine) -> Result<T> + Sync) -> Result<Vec<T>> {
        let ask = &ask;
        std::thread::scope(|scope| {
            let ranks = self.engines.iter_mut().enumerate();
            let threads: Vec<_> =
                ranks.map(|(rank, engine)| scope.spawn(move || ask(rank, engine))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Parts of all ranks side by side: `n` rows of each rank's latents.
    fn beside(&self, n: usize, part: impl Fn(usize) -> Vec<f32>) -> Vec<f32> {
        let parts: Vec<Vec<f32>> = (0..self.shards.len()).map(part).collect();
        let row = |row: usize| {
            parts.iter().zip(&self.shards).flat_map(move |(part, shard)| {
                let m = shard.latents().len();
                part[row * m..(row + 1) * m].to_vec()
            })
        };
        (0..n).flat_map(row).collect()
    }
}

/// The same of every rank, to the bit.
fn same<T: PartialEq + std::fmt::Debug + Clone>(all: &[T]) -> T {
    assert!(all.iter().all(|one| one == &all[0]), "ranks differ: {all:?}");
    all[0].clone()
}

/// Latents of all ranks, one rank's after the other's.
fn joined(all: &[Params]) -> Params {
    let chain = |part: &dyn Fn(&Params) -> Vec<f32>| all.iter().flat_map(part).collect::<Vec<f32>>();
    let optional = |part: &dyn Fn(&Params) -> Option<Vec<f32>>| {
        part(&all[0]).map(|_| all.iter().flat_map(|p| part(p).unwrap()).collect::<Vec<f32>>())
    };
    let b_pre: Vec<&Vec<f32>> = all.iter().map(|p| &p.b_pre).collect();
    Params {
        d_in: all[0].d_in,
        n_latents: all.iter().map(|p| p.n_latents).sum(),
        w_enc: chain(&|p| p.w_enc.clone()),
        w_dec: optional(&|p| p.w_dec.clone()),
        b_pre: same(&b_pre).clone(),
        b_lat: chain(&|p| p.b_lat.clone()),
        threshold: optional(&|p| p.threshold.clone()),
    }
}

fn bits(stats: &StepStats) -> [u64; 5] {
    [stats.loss, stats.mse, stats.l1, stats.aux, stats.grad_norm].map(f64::to_bits)
}

impl Backend for Together {
    fn device(&self) -> String {
        format!("{} ranks", self.engines.len())
    }

    fn step(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<()> {
        self.ask(|_, engine| engine.step(rows, plan)).map(drop)
    }

    fn collect(&mut self) -> Result<Vec<StepStats>> {
        let all = self.ask(|_, engine| engine.collect())?;
        same(&all.iter().map(|steps| steps.iter().map(bits).collect::<Vec<_>>()).collect::<Vec<_>>());
        Ok(all[0].clone())
    }

    fn evaluate_checked(
        &mut self,
        rows: &[u32],
        weights: Weights,
        fired: &mut [u64],
        _: &mut dyn FnMut() -> Result<()>,
    ) -> Result<EvalSums> {
        let all = self.ask(|_, engine| {
            let mut counts = vec![0; fired.len()];
            let sums = engine.evaluate(rows, weights, &mut counts)?;
            Ok((sums, counts))
        })?;
        let (sums, counts) = same(&all);
        fired.iter_mut().zip(counts).for_each(|(fired, count)| *fired += count);
        Ok(sums)
    }

    fn encode(&mut self, rows: &[u32], weights: Weights) -> Result<Codes> {
        self.engines[0].encode(rows, weights)
    }

    fn calibrate(&mut self, rows: &[u32], weights: Weights) -> Result<()> {
        self.ask(|_, engine| engine.calibrate(rows, weights)).map(drop)
    }

    fn set_data(&mut self, data: Arc<dyn RowSource>) -> Result<()> {
        self.ask(|_, engine| engine.set_data(data.clone())).map(drop)
    }

    fn state(&mut self) -> Result<Cow<'_, TrainState>> {
        let all = self.ask(|_, engine| Ok(engine.state()?.into_owned()))?;
        let set = |of: &dyn Fn(&TrainState) -> Params| joined(&all.iter().map(of).collect::<Vec<Params>>());
        let state = TrainState {
            step: same(&all.iter().map(|state| state.step).collect::<Vec<u64>>()),
            params: set(&|state| state.params.clone()),
            m: set(&|state| state.m.clone()),
            v: set(&|state| state.v.clone()),
            ema: all[0].ema.is_some().then(|| set(&|state| state.ema.clone().unwrap())),
            idle_rows: all.iter().flat_map(|state| state.idle_rows.clone()).collect(),
            penalty_weight: same(&all.iter().map(|state| state.penalty_weight.clone()).collect::<Vec<_>>()),
        };
        Ok(Cow::Borrowed(self.state.insert(state)))
    }

    fn set_state(&mut self, _: u64, _: &mut Fill<'_>) -> Result<()> {
        unimplemented!("ranks are made anew from a state")
    }
}

impl Look for Together {
    fn inspect(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        let n = rows.len();
        let all = self.ask(|_, engine| engine.inspect(rows, plan))?;
        same(&all.iter().map(|pass| bits(&pass.stats)).collect::<Vec<_>>());
        same(
            &all.iter()
                .map(|pass| pass.recon.iter().map(|v| v.to_bits()).collect())
                .collect::<Vec<Vec<u32>>>(),
        );
        Ok(Pass {
            stats: all[0].stats,
            pre_acts: self.beside(n, |rank| all[rank].pre_acts.clone()),
            code: self.beside(n, |rank| all[rank].code.clone()),
            recon: all[0].recon.clone(),
            grad_pre_acts: self.beside(n, |rank| all[rank].grad_pre_acts.clone()),
            grad_code: None,
            grads: joined(&all.iter().map(|pass| pass.grads.clone()).collect::<Vec<Params>>()),
        })
    }
}
