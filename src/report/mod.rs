//! What a person looks at: curves, and the page of a run. Everything here is made of what the rooms below give, and
//! nothing below knows it.

pub mod curves;
pub mod html;
#[cfg(not(feature = "plots"))]
#[path = "no_plots.rs"]
pub mod plots;
#[cfg(feature = "plots")]
pub mod plots;
pub mod request;
mod scale;
pub mod views;
