//! Which split a row is in: what the run's `splits.tsv` says, and not what a hash would say of rows that the run has
//! never seen.

use crate::error::Result;
use crate::model::file::ModelMeta;
use crate::rows::read_parts;
use crate::rows::{Part, part_of_id};
use crate::run::folder::names;
use crate::text::thousands;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The splits of the run that a model comes from.
#[derive(Debug, Clone)]
pub struct RunSplits {
    model: PathBuf,
    /// Split of each id of the run; `None` for a model file, and for a folder without `splits.tsv`.
    parts: Option<HashMap<String, Part>>,
    seed: u64,
}

impl RunSplits {
    /// Those of `model`, a run folder or a model file.
    ///
    /// # Errors
    /// As [`read_parts`].
    pub fn of(model: &Path, meta: &ModelMeta) -> Result<Self> {
        let table = model.join(names::SPLITS);
        let parts = if table.is_file() { Some(read_parts(&table)?) } else { None };
        Ok(Self { model: model.to_owned(), parts, seed: meta.split_seed() })
    }

    /// The split that the run put an id into; `None` for an id that it has never seen.
    pub fn of_run(&self, id: &str) -> Option<Part> {
        self.parts.as_ref()?.get(id).copied()
    }

    /// The split of an id, and whether it comes from the hash alone: that of an id which the run has never seen.
    pub fn of_id(&self, id: &str) -> (Part, bool) {
        match self.of_run(id) {
            Some(part) => (part, false),
            None => (part_of_id(id, self.seed), true),
        }
    }

    /// The warning for a person who asks for the split `part` of rows, `hashed` of which are in it by the hash alone.
    pub fn warning(&self, part: Part, rows: u64, hashed: u64) -> Option<String> {
        if hashed == 0 {
            return None;
        }
        let (model, seed) = (self.model.display(), self.seed);
        if self.parts.is_none() {
            let what =
                if self.model.is_dir() { "has no splits.tsv" } else { "is a model file, not a run folder" };
            return Some(format!(
                "{model} {what}: which rows it was trained on is not known; --split {part} takes rows by the hash of their ids (seed {seed})"
            ));
        }
        Some(format!(
            "{} of the {} {part} rows have ids that are not in {}: they were picked by the hash of their ids (seed {seed}), and the model was not trained on them whatever the split",
            thousands(hashed),
            thousands(rows),
            self.model.join(names::SPLITS).display()
        ))
    }
}
