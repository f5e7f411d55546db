//! Training, as a library: [`Trainer`] goes from rows to a model. It knows no files, folders or terminal: what happens is
//! reported to an [`Observer`], states are kept by a [`Store`]. [`crate::run`] makes a run in a folder of it.

mod explain;
pub mod metrics;
mod observer;
mod progress;
mod queue;
mod start;
mod store;
mod trainer;
mod unit;

pub use observer::{Observer, StepReport, Warning};
pub use progress::Progress;
pub(crate) use start::{start_bytes, start_rows, start_weights, starts_apart, state_of};
pub use store::{BestInMemory, Store};
pub use trainer::{Stop, Trained, Trainer};
pub use unit::resolve;
pub(crate) use unit::{TrainRows, resolve_known, unit_warning};
