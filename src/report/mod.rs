//! What a person looks at: curves, and the page of a run. Everything here is made of what the rooms below give, and
//! nothing below knows it.

pub mod curves;
pub mod html;
pub mod plots;
pub mod request;
mod scale;
