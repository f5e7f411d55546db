//! The CUDA engine, in reading order.
//!
//! | file | holds |
//! | --- | --- |
//! | [`device`] | what is asked of a device: memory, copies, launches, dense products, recorded work |
//! | [`params`] | structs that host and kernels share |
//! | [`buffer`] | device memory with a type |
//! | [`tensors`] | the training state on the device |
//! | [`work`] | sizes of a run, and the buffers of a batch |
//! | [`launch`] | one launcher a kernel |
//! | [`engine`] | the backend: data, evaluations, statistics |
//! | `all_rows` | all rows on the device, shared by the backends of a process |
//! | `feed` | batches of rows on their way to the device |
//! | `step` | what is queued of a step |
//! | `look` | a look inside a pass |
//! | `evaluate` | the inference code: its quality, its entries |
//! | [`libraries`] | the driver, NVRTC and cuBLAS: found and opened, or named in an error where they are missing |
//! | [`compile`] | the kernels by NVRTC, kept on disk; what each of them takes of the card |
//! | [`card`] | a device that is a CUDA card |
//! | `pinned`, `lane` | messages to a card: small ones in turn, rows ahead of the work |
//! | [`gemm`] | a row-major product as a call of cuBLAS |
//! | [`fault`] | errors of the driver in one line |
//! | `rank` | a backend that is one of several |
//! | [`ranks`] | latents shared out over several devices |
//! | [`cost`] | what a step of several ranks costs, on paper |
//! | [`nccl`] | ranks that are processes with a card each |
//! | [`timed`] | a device that times each launch of another |

mod all_rows;
pub mod buffer;
pub mod card;
pub mod compile;
pub mod cost;
pub mod device;
pub mod engine;
mod evaluate;
pub mod fault;
mod feed;
pub mod gemm;
mod lane;
pub mod launch;
pub mod libraries;
mod look;
pub mod nccl;
pub mod params;
mod pinned;
pub mod places;
mod rank;
pub mod ranks;
mod step;
pub mod tensors;
pub mod timed;
pub mod work;

use super::Backend;
use crate::error::Result;
use crate::model::TrainState;
use crate::peers::Peers;
use crate::rows::RowSource;
use crate::spec::{ModelSpec, Precision, Training};
use device::Device;
use gemm::Math;
use std::sync::Arc;

/// The kernels' sources, carried by the binary.
pub mod sources {
    include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));
}

/// Why no CUDA device can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// True where an NVIDIA driver is there, so that a person would expect the GPU to be used.
    pub driver: bool,
    /// What is missing, in one line without a full stop.
    pub reason: String,
}

/// Number of devices that can be used (at least 1).
///
/// # Errors
/// Why there is none.
pub fn available() -> std::result::Result<usize, Unavailable> {
    libraries::available().map_err(|reason| Unavailable { driver: libraries::driver_is_there(), reason })
}

/// How dense products compute in a precision.
pub fn math(precision: Precision) -> Math {
    match precision {
        Precision::F32 => Math::F32,
        Precision::Tf32 => Math::Tf32,
        Precision::Bf16 => Math::Bf16,
    }
}

/// Bytes of memory that device `ordinal` has; `None` where it does not say.
pub fn memory_of_card(ordinal: usize) -> Option<u64> {
    Some(libraries::driver().ok()?.cards.get(ordinal)?.memory)
}

/// A backend on device `ordinal` over `data` that goes on from `state`.
///
/// # Errors
/// What is missing on this machine, or what the device refuses.
pub fn open(
    ordinal: usize,
    data: Arc<dyn RowSource>,
    spec: ModelSpec,
    precision: Precision,
    state: TrainState,
) -> Result<Box<dyn Backend>> {
    let card = card::open(ordinal, math(precision))?;
    let name = format!("cuda:{ordinal} {}", card.facts()?.name);
    Ok(Box::new(engine::Engine::new(name, Box::new(card), data, spec, precision, &state)?))
}

/// The backend of one rank of several, which meets the others through `peers`: `state` has its share of `latents`.
///
/// # Errors
/// As for [`open`]; no NCCL, or a rank is gone.
pub fn open_rank(
    ordinal: usize,
    data: Arc<dyn RowSource>,
    spec: ModelSpec,
    precision: Precision,
    state: &TrainState,
    latents: usize,
    peers: Arc<Peers>,
) -> Result<Box<dyn Backend>> {
    let mut card = card::open(ordinal, math(precision))?;
    // Without the number, which is another one on each rank.
    let name = format!("{} ranks of {}", peers.place().count, card.facts()?.name);
    let nccl = Box::new(nccl::Nccl::join(peers.clone(), &mut card)?);
    let engine = engine::Engine::of_rank(name, Box::new(card), data, spec, precision, state, latents, nccl)?;
    Ok(Box::new(rank::Rank::new(engine, peers)?))
}

/// Bytes of device memory that training takes beside the data, its `n_data` rows, warm-up included, on each of `ranks` at most.
pub fn memory(t: &Training, ranks: usize, n_data: usize) -> u64 {
    // Evaluations use the buffers of steps.
    let n_rows = t.schedule.batch_size.max(engine::LEAST_ROWS.min(n_data));
    memory_of(&t.model, t.d_in, (t.n_latents, ranks), t.tied, n_rows, t.precision)
}

/// The same for D inputs, M latents shared out over ranks, and batches of `n_rows`.
pub fn memory_of(
    spec: &ModelSpec,
    d_in: usize,
    (n_latents, ranks): (usize, usize),
    tied: bool,
    n_rows: usize,
    precision: Precision,
) -> u64 {
    // Refused sizes are reported when the device is opened.
    let Ok(sizes) = work::Sizes::new(spec, d_in, n_latents, tied, precision, crate::rows::Dtype::F32) else {
        return 0;
    };
    let shards =
        (0..ranks).filter(|_| ranks > 1).filter_map(|rank| ranks::Shard::of(rank, ranks, n_latents).ok());
    let largest = shards.max_by_key(|shard| shard.latents().len());
    let sizes = largest.map_or(sizes, |shard| sizes.of_rank(shard));
    let n_latents = sizes.m;
    let state = tensors::bytes(
        d_in,
        n_latents,
        tied,
        spec.optimizer.ema.is_some(),
        spec.forward.has_threshold(),
        sizes.element,
    );
    state + engine::shared_bytes(n_latents) + work::bytes(&sizes, spec, n_rows)
}
