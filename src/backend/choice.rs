//! Which device computes, and the one place that makes backends.

use super::Backend;
use super::cpu::{self, fast::FastCpu};
use super::cuda::{self, Unavailable};
use crate::console;
use crate::error::{Error, Result};
use crate::model::TrainState;
use crate::peers::Peers;
use crate::rows::RowSource;
use crate::spec::{ModelSpec, Precision, Training};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device where there is one that can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by number; the first where none is given.
    Cuda(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(|n| Self::Cuda(Some(n)))
                .ok_or_else(|| "it is not auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// The device that computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected {
    /// The CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl DeviceChoice {
    /// Settles the choice on this machine. Where `auto` passes over a GPU that something is missing for, one
    /// warning line says so, unless `quiet`.
    ///
    /// # Errors
    /// [`Error::Failed`] if a CUDA device is asked for that cannot be used, with the reason.
    pub fn select(self, quiet: bool) -> Result<Selected> {
        if self == Self::Cpu {
            return Ok(Selected::Cpu);
        }
        let (selected, warning) = self.settle(cuda::available())?;
        if let Some(text) = warning.filter(|_| !quiet) {
            console::warn(text);
        }
        Ok(selected)
    }

    /// The device of a rank of several, the `local`th of its machine: the GPU of that number, or the only one that it is shown.
    ///
    /// # Errors
    /// [`Error::Usage`] where something else is asked for; [`Error::Failed`] where there is no such GPU.
    pub fn select_of_rank(self, local: usize) -> Result<Selected> {
        match self {
            Self::Cpu => Err(Error::Usage(
                "--device cpu: several processes train one model on GPUs alone; leave the option out, or start one process".into(),
            )),
            Self::Cuda(Some(n)) => Err(Error::Usage(format!(
                "--device cuda:{n}: each of several processes takes the GPU of its own number; give `--device cuda`, and choose GPUs \
                 with CUDA_VISIBLE_DEVICES"
            ))),
            Self::Auto | Self::Cuda(None) => match cuda::available() {
                Ok(1) => Ok(Selected::Cuda(0)),
                Ok(n) if local < n => Ok(Selected::Cuda(local)),
                Ok(n) => Err(Error::Failed(format!(
                    "there are {n} GPUs here, and this process is number {local}, counted from 0; start as many processes on each \
                     machine as it has GPUs"
                ))),
                Err(Unavailable { reason, .. }) => Err(Error::Failed(format!(
                    "several processes train one model on GPUs alone: {reason}; `sae devices` shows what was looked for"
                ))),
            },
        }
    }

    /// The device, and the warning that comes with it, where `found` devices can be used.
    fn settle(self, found: std::result::Result<usize, Unavailable>) -> Result<(Selected, Option<String>)> {
        let (flag, wanted) = match self {
            Self::Cpu => return Ok((Selected::Cpu, None)),
            Self::Auto => ("--device auto".to_owned(), 0),
            Self::Cuda(None) => ("--device cuda".to_owned(), 0),
            Self::Cuda(Some(n)) => (format!("--device cuda:{n}"), n),
        };
        match (self, found) {
            (_, Ok(n)) if wanted < n => Ok((Selected::Cuda(wanted), None)),
            (Self::Auto, Ok(_)) => Ok((Selected::Cpu, None)),
            (Self::Auto, Err(Unavailable { driver, reason })) => Ok((
                Selected::Cpu,
                driver.then(|| format!("falling back to the CPU: {reason}; `sae devices` shows more")),
            )),
            (_, Ok(n)) => Err(Error::Failed(format!(
                "{flag}: CUDA devices that can be used here: {n}, counted from cuda:0; `sae devices` lists them"
            ))),
            (_, Err(Unavailable { reason, .. })) => {
                Err(Error::Failed(format!("{flag}: {reason}; `sae devices` shows what was looked for")))
            }
        }
    }
}

impl Selected {
    /// Whether this device can compute in `precision`.
    ///
    /// # Errors
    /// [`Error::Usage`] if not: the CPU has float32 alone.
    pub fn check(self, precision: Precision) -> Result<()> {
        if self == Self::Cpu && precision != Precision::F32 {
            return Err(Error::Usage(format!(
                "--precision {precision} needs a GPU, and the CPU would compute, which has f32 alone; `sae devices` shows what was found"
            )));
        }
        Ok(())
    }
}

/// A backend on `device` over `data` that goes on from `state`.
///
/// # Errors
/// [`Error::Usage`] for a precision that the device does not have; what the device refuses, such as memory.
pub fn open(
    device: Selected,
    data: Arc<dyn RowSource>,
    spec: ModelSpec,
    precision: Precision,
    state: TrainState,
) -> Result<Box<dyn Backend>> {
    device.check(precision)?;
    match device {
        Selected::Cpu => Ok(Box::new(FastCpu::new(data, spec, state))),
        Selected::Cuda(ordinal) => cuda::open(ordinal, data, spec, precision, state),
    }
}

/// The backend of one rank of several, which meets the others through `peers`: `state` has its share of `latents`.
///
/// # Errors
/// As for [`open`]; a rank is gone; the CPU, which trains alone.
pub fn open_rank(
    device: Selected,
    data: Arc<dyn RowSource>,
    spec: ModelSpec,
    precision: Precision,
    state: &TrainState,
    latents: usize,
    peers: Arc<Peers>,
) -> Result<Box<dyn Backend>> {
    match device {
        Selected::Cpu => {
            Err(Error::Failed("the CPU cannot be one of several ranks; please report this".into()))
        }
        Selected::Cuda(ordinal) => cuda::open_rank(ordinal, data, spec, precision, state, latents, peers),
    }
}

/// Bytes of the device's memory that training takes beside the data, without what libraries need for themselves, on each of
/// `ranks` (at most); `n_data` is the number of rows, `n_train` that of the training rows.
pub fn memory(device: Selected, t: &Training, ranks: usize, n_train: usize, n_data: usize) -> u64 {
    match device {
        Selected::Cpu => cpu::memory::bytes(t, n_train, n_data),
        Selected::Cuda(_) => cuda::memory(t, ranks, n_data),
    }
}

/// What a step of several ranks costs each of them, on paper (`cuda/cost.rs`).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct OnPaper {
    /// Bytes that a rank sends to others.
    pub sent_bytes: u64,
    /// Seconds of the step on H100s, with NVLink in a node and one InfiniBand adapter of 400 Gb/s per GPU between nodes.
    pub step_seconds: f64,
    /// Seconds of it in which ranks exchange.
    pub exchange_seconds: f64,
}

/// Of a hard step of `t` on `ranks`, so many of which share a node, with rows of `rows` if these are in files; `None` for what the
/// model on paper does not have: thresholds, a selection over the batch, prefixes.
#[cfg(feature = "cuda")]
pub fn on_paper(t: &Training, rows: &dyn RowSource, ranks: usize, per_node: usize) -> Option<OnPaper> {
    use cuda::cost::{BF16, Cluster, Cost, F32, H100, Shape, TF32};
    let (forward, bytes) = (&t.model.forward, if t.precision == Precision::Bf16 { 2 } else { 4 });
    if !forward.activation.is_per_row() || !forward.prefixes.is_empty() {
        return None;
    }
    let shape = Shape {
        d_in: t.d_in,
        n_latents: t.n_latents,
        rows: t.schedule.batch_size,
        k: forward.k,
        aux_k: t.model.objective.aux_k,
        tied: t.tied,
        average: t.model.optimizer.ema.is_some(),
        clip: t.model.optimizer.clip_norm.is_some(),
        bytes,
        flops: match t.precision {
            Precision::F32 => F32,
            Precision::Tf32 => TF32,
            Precision::Bf16 => BF16,
        },
        // Unless all rows fit on each GPU, which is not known here.
        row_bytes: if rows.window().is_some() { t.d_in * rows.dtype().size().min(4) } else { 0 },
    };
    let cost = Cost::of(&shape, &Cluster { ranks, per_node }, &H100);
    let (sent_bytes, step_seconds) = (cost.sent.bytes() as u64, cost.step_s);
    Some(OnPaper { sent_bytes, step_seconds, exchange_seconds: cost.exchange_s })
}

/// Nothing: there is no GPU.
#[cfg(not(feature = "cuda"))]
pub fn on_paper(_: &Training, _: &dyn RowSource, _: usize, _: usize) -> Option<OnPaper> {
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn missing(driver: bool) -> std::result::Result<usize, Unavailable> {
        Err(Unavailable { driver, reason: "no libnvrtc.so".into() })
    }

    #[test]
    fn the_flag_has_four_forms() {
        let parse = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(parse("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(parse("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(parse("cuda"), Ok(DeviceChoice::Cuda(None)));
        assert_eq!(parse("cuda:3"), Ok(DeviceChoice::Cuda(Some(3))));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn auto_takes_the_first_gpu_else_the_cpu_and_warns_only_where_there_is_a_driver() {
        let auto = DeviceChoice::Auto;
        assert_eq!(auto.settle(Ok(2)).unwrap(), (Selected::Cuda(0), None));
        assert_eq!(auto.settle(Ok(0)).unwrap(), (Selected::Cpu, None));
        assert_eq!(auto.settle(missing(false)).unwrap(), (Selected::Cpu, None));
        let (selected, warning) = auto.settle(missing(true)).unwrap();
        assert_eq!(selected, Selected::Cpu);
        assert!(warning.unwrap().contains("no libnvrtc.so"));
    }

    #[test]
    fn a_gpu_that_is_asked_for_is_taken_or_refused_with_the_reason() {
        assert_eq!(DeviceChoice::Cuda(None).settle(Ok(1)).unwrap(), (Selected::Cuda(0), None));
        assert_eq!(DeviceChoice::Cuda(Some(1)).settle(Ok(2)).unwrap(), (Selected::Cuda(1), None));
        let refused = |choice: DeviceChoice, found| choice.settle(found).unwrap_err();
        let error = refused(DeviceChoice::Cuda(Some(7)), Ok(2));
        assert!(error.exit_status() == 1 && error.to_string().contains("--device cuda:7"), "{error}");
        for driver in [false, true] {
            let error = refused(DeviceChoice::Cuda(None), missing(driver));
            assert!(error.exit_status() == 1 && error.to_string().contains("no libnvrtc.so"), "{error}");
        }
        assert_eq!(DeviceChoice::Cpu.settle(Ok(1)).unwrap(), (Selected::Cpu, None));
    }

    #[test]
    fn the_cpu_has_float32_alone() {
        assert!(Selected::Cpu.check(Precision::F32).is_ok());
        for precision in [Precision::Tf32, Precision::Bf16] {
            assert_eq!(Selected::Cpu.check(precision).unwrap_err().exit_status(), 2);
            assert!(Selected::Cuda(0).check(precision).is_ok());
        }
    }
}
