//! Embeddings from HDF5, `.npy` and `.safetensors`: loading, and what a file holds.
//!
//! Reading order: `file` is an open file of any format, told by `signature`; `h5` wraps the library
//! of HDF5; `header` and `heap` go past it where it is slow (20,000 small datasets) or unsafe
//! (damaged strings); `advice` is for what it cannot read; `flat` reads the other formats; `scan` surveys
//! the datasets, `reading` decides what the rows are (with `records` where there is a dataset per id,
//! `writers` for files of known programs, `ids`), `read` brings the bytes, `load` checks every
//! row, `stream` does so block by block, `one_id` reads the rows of one id alone, `streamed` leaves rows in the files for a training that asks for them.

mod advice;
mod attributes;
mod behind;
mod chunks;
mod embeddings;
mod file;
mod first_pass;
mod flat;
mod given;
mod groups;
mod h5;
mod header;
mod heap;
mod id_file;
mod ids;
mod in_place;
mod inspect;
mod kind;
mod load;
mod one_id;
mod paths;
mod pattern;
mod read;
mod reading;
mod records;
mod scan;
mod signature;
mod stream;
mod streamed;
#[cfg(feature = "parquet")]
mod table;
mod text;
mod view;
mod writers;

pub use behind::files_behind;
pub use embeddings::{Embeddings, Skipped};
pub(crate) use first_pass::FirstPass;
pub(crate) use given::GIVEN;
pub use given::Given;
pub(crate) use h5::{brief, library_name};
pub(crate) use id_file::is_file as is_id_file;
pub(crate) use ids::first_control;
pub use inspect::{FileSummary, inspect};
pub use one_id::OneId;
pub use paths::{FoundFiles, data_files};
pub use stream::{Blocks, DataFiles};
pub use streamed::Streamed;

/// Axes of datasets that are taken at one index, as (axis, index), both from 0; `0=33` or `0=33,1=2` as a person writes
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct AxisPicks(pub Vec<(usize, u64)>);

impl std::str::FromStr for AxisPicks {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let pick = |text: &str| {
            let (axis, index) = text.split_once('=')?;
            Some((axis.trim().parse().ok()?, index.trim().parse().ok()?))
        };
        let wrong = || format!("`{text}` is no AXIS=I, such as 0=33 (both count from 0)");
        text.split(',').map(|text| pick(text).ok_or_else(wrong)).collect::<Result<_, _>>().map(Self)
    }
}

impl std::fmt::Display for AxisPicks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let picks: Vec<String> = self.0.iter().map(|(axis, index)| format!("{axis}={index}")).collect();
        f.write_str(&picks.join(","))
    }
}

impl From<AxisPicks> for String {
    fn from(picks: AxisPicks) -> Self {
        picks.to_string()
    }
}

impl TryFrom<String> for AxisPicks {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What is done with rows that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "BadRowsText", try_from = "BadRowsText")]
pub enum BadRows {
    /// The first is an error.
    #[default]
    Stop,
    /// They are dropped and counted, but for more than a tenth of all rows, which is an error.
    Skip,
    /// They are dropped and counted, however many.
    SkipAll,
}

/// As a configuration file has it: `false`, `true` or `"all"`.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum BadRowsText {
    Switch(bool),
    Word(String),
}

impl From<BadRows> for BadRowsText {
    fn from(rows: BadRows) -> Self {
        match rows {
            BadRows::Stop => Self::Switch(false),
            BadRows::Skip => Self::Switch(true),
            BadRows::SkipAll => Self::Word("all".into()),
        }
    }
}

impl TryFrom<BadRowsText> for BadRows {
    type Error = String;
    fn try_from(text: BadRowsText) -> Result<Self, String> {
        match text {
            BadRowsText::Switch(skip) => Ok(if skip { Self::Skip } else { Self::Stop }),
            BadRowsText::Word(word) => word.parse(),
        }
    }
}

impl std::str::FromStr for BadRows {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "false" => Ok(Self::Stop),
            "true" => Ok(Self::Skip),
            "all" => Ok(Self::SkipAll),
            _ => Err(format!("`{text}` is not `all`; leave it out to drop up to a tenth of the rows")),
        }
    }
}

impl std::fmt::Display for BadRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stop => "false",
            Self::Skip => "true",
            Self::SkipAll => "all",
        })
    }
}

/// How data files are to be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// The datasets that hold the rows, where the file alone does not decide: a dataset, a group, or either with `*` for
    /// one component of its path.
    pub dataset: Option<String>,
    /// What the ids are: a dataset beside a matrix, `@` and an attribute, a file (`.txt`, `.npy`), `row` for row numbers, or
    /// `file` for the file's name.
    pub ids: Option<String>,
    /// Axes to take at one index.
    pub index: AxisPicks,
    /// Rows are the last axis of a matrix.
    pub transpose: bool,
    /// Integers of 16 bits are the bits of bfloat16 numbers.
    pub bfloat16: bool,
    /// What says which ids belong together: a dataset beside the matrix, or `@` and an attribute of each dataset.
    pub group_by: Option<String>,
    /// What is done with rows that cannot be used.
    pub bad_rows: BadRows,
}

impl LoadOptions {
    /// These, and where they say nothing what `other` says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            dataset: self.dataset.or(other.dataset),
            ids: self.ids.or(other.ids),
            index: if self.index.0.is_empty() { other.index } else { self.index },
            transpose: self.transpose || other.transpose,
            bfloat16: self.bfloat16 || other.bfloat16,
            group_by: self.group_by.or(other.group_by),
            bad_rows: if self.bad_rows == BadRows::Stop { other.bad_rows } else { self.bad_rows },
        }
    }
}
