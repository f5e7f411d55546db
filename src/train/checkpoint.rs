//! Checkpoints: everything that a run needs to go on to the same bits.
//!
//! A checkpoint is a safetensors file: the weights (`w_enc`, ...), Adam's moments (`m.*`, `v.*`), the moving
//! average (`ema.*`) where there is one, `idle_rows`, and as metadata the [`Progress`] with a CRC-32 of each
//! tensor. Batches and noise are functions of the step, so no generator's state is stored.

use crate::config::Settings;
use crate::error::{Error, Result};
use crate::files::{self, Tensor};
use crate::model::TrainState;
use crate::train::metrics::{MetricRow, PartSums};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const KEY: &str = "checkpoint";
/// The newest format that this version reads, and the one that it writes. Version 0.1.0 wrote 1.
pub const SCHEMA: u32 = 2;
/// Bytes of a safetensors header at most, as the format's own library has it.
const MOST_HEADER: u64 = 100_000_000;

/// Where a run is, beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Version of this format.
    #[serde(alias = "format")]
    pub schema: u32,
    /// Steps done.
    pub step: u64,
    /// The run's settings, so that a checkpoint is never mixed up with another run.
    #[serde(alias = "config", deserialize_with = "settings")]
    pub settings: Settings,
    /// Hash of ids and values of the data.
    pub data: u64,
    /// Evaluations so far.
    pub metrics: Vec<MetricRow>,
    /// Sum of the training loss since the last evaluation, and its steps.
    pub loss: (f64, u64),
    /// Sums of its parts over these steps; nothing in checkpoints of version 0.1.0.
    #[serde(default)]
    pub parts: PartSums,
    /// Seconds spent in steps since the last evaluation, and since the start.
    pub seconds: (f64, f64),
    /// Step and validation FVU of the best evaluation, of those whose FVU is finite.
    #[serde(deserialize_with = "finite_best")]
    pub best: Option<(u64, f64)>,
    /// Evaluations since the best one.
    pub waited: u64,
    /// What computed, as [`crate::backend::Backend::device`] names it; empty where it is not known.
    #[serde(default)]
    pub device: String,
}

/// Reads the settings; version 0.1.0 kept them as the text of its `config.toml`.
fn settings<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Settings, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Settings(Settings),
    }
    Ok(match Stored::deserialize(deserializer)? {
        Stored::Text(text) => Settings::from_toml(&text),
        Stored::Settings(settings) => settings,
    })
}

/// Reads the best evaluation. Version 0.1.0 let one whose FVU is not finite, `null` in JSON, be the best: that is none.
fn finite_best<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<(u64, f64)>, D::Error> {
    let best = Option::<(u64, Option<f64>)>::deserialize(deserializer)?;
    Ok(best.and_then(|(step, fvu)| Some((step, fvu?))))
}

impl Progress {
    /// Nothing done yet.
    pub fn start(settings: Settings, data: u64) -> Self {
        Self {
            schema: SCHEMA,
            step: 0,
            settings,
            data,
            metrics: vec![],
            loss: (0.0, 0),
            parts: PartSums::default(),
            seconds: (0.0, 0.0),
            best: None,
            waited: 0,
            device: String::new(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    progress: Progress,
    crc: BTreeMap<String, u32>,
}

fn tensors(state: &TrainState) -> Vec<Tensor<'_>> {
    let named = state.tensors().into_iter().map(|(name, shape, values)| Tensor::f32(name, shape, values));
    let idle = Tensor::u32("idle_rows".into(), vec![state.idle_rows.len()], &state.idle_rows);
    named.chain([idle]).collect()
}

/// Writes a checkpoint, whole or not at all.
///
/// # Errors
/// [`Error::Io`] as the disk gives it.
pub fn save(path: &Path, state: &TrainState, progress: &Progress) -> Result<()> {
    let tensors = tensors(state);
    let crc = tensors.iter().map(|t| (t.name.clone(), crc32fast::hash(t.bytes))).collect();
    let header = serde_json::to_string(&Header { progress: progress.clone(), crc })
        .map_err(|e| Error::Failed(format!("the checkpoint's header cannot be written: {e}")))?;
    // The header carries the tensors' sums; its own goes in front of it.
    let value = format!("{:08x} {header}", crc32fast::hash(header.as_bytes()));
    files::write_safetensors(path, &tensors, [(KEY, value)])
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::Model { path: path.to_owned(), what: format!("is damaged ({what})") }
}

/// Where the run was, of a checkpoint whose tensors are not looked at.
///
/// # Errors
/// As [`Stored::open`].
pub fn progress(path: &Path) -> Result<Progress> {
    Ok(Stored::open(path)?.header.progress)
}

/// Reads a checkpoint into a state of the shapes of `like`.
///
/// # Errors
/// As [`Stored::open`] and [`Stored::read`].
pub fn load(path: &Path, like: &TrainState) -> Result<(TrainState, Progress)> {
    let mut state = like.clone();
    let progress = load_into(path, &mut state)?;
    Ok((state, progress))
}

/// Reads a checkpoint over `state`; no second state is in memory meanwhile.
///
/// # Errors
/// As [`load`]; `state` is then a mixture.
pub fn load_into(path: &Path, state: &mut TrainState) -> Result<Progress> {
    let mut stored = Stored::open(path)?;
    state.fill(&mut |name, out| stored.read(name, out))?;
    state.step = stored.header.progress.step;
    Ok(stored.header.progress)
}

/// A checkpoint whose tensors are read one at a time.
pub struct Stored {
    path: PathBuf,
    file: File,
    header: Header,
    tensors: Metadata,
    /// Where the tensors' bytes begin in the file.
    data: u64,
}

impl Stored {
    /// Opens a checkpoint and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Model`] if it is cut off or altered: what is wrong alone, for what to
    /// do next depends on what else there is.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path, "read"))?;
        let length = file.metadata().map_err(Error::io(path, "read"))?.len();
        let cut = || damaged(path, "it is cut");
        let mut size = [0; 8];
        if length < 8 {
            return Err(cut());
        }
        file.read_exact(&mut size).map_err(Error::io(path, "read"))?;
        let size = u64::from_le_bytes(size);
        if size > length - 8 || size > MOST_HEADER {
            return Err(cut());
        }
        let mut text = vec![0; size as usize];
        file.read_exact(&mut text).map_err(Error::io(path, "read"))?;
        let tensors: Metadata = serde_json::from_slice(&text).map_err(|e| damaged(path, &e.to_string()))?;
        if tensors.data_len() as u64 != length - 8 - size {
            return Err(cut());
        }
        let header = read_header(path, tensors.metadata().as_ref().and_then(|map| map.get(KEY)))?;
        Ok(Self { path: path.to_owned(), file, header, tensors, data: 8 + size })
    }

    /// Where the run was.
    pub fn progress(&self) -> &Progress {
        &self.header.progress
    }

    /// Reads a tensor, as [`crate::model::Fill`] asks for it.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing, of another size or altered; [`Error::Io`].
    pub fn read(&mut self, name: &str, out: &mut [u8]) -> Result<()> {
        let Self { path, file, header, tensors, data } = self;
        let info = tensors.info(name).ok_or_else(|| damaged(path, &format!("tensor {name} is missing")))?;
        let dtype = if name == "idle_rows" { Dtype::U32 } else { Dtype::F32 };
        let (from, to) = info.data_offsets;
        if info.dtype != dtype || to - from != out.len() {
            return Err(damaged(path, &format!("tensor {name} has another type or size than the run's")));
        }
        let at = SeekFrom::Start(*data + from as u64);
        file.seek(at).and_then(|_| file.read_exact(out)).map_err(Error::io(path, "read"))?;
        if header.crc.get(name) != Some(&crc32fast::hash(out)) {
            return Err(damaged(path, &format!("tensor {name} does not match its checksum")));
        }
        Ok(())
    }
}

fn read_header(path: &Path, entry: Option<&String>) -> Result<Header> {
    let text = entry.ok_or_else(|| damaged(path, "it has no checkpoint header"))?;
    let (crc, header) = text.split_once(' ').ok_or_else(|| damaged(path, "its header is cut"))?;
    if u32::from_str_radix(crc, 16) != Ok(crc32fast::hash(header.as_bytes())) {
        return Err(damaged(path, "its header does not match its checksum"));
    }
    // Before the rest, whose shape another format may have changed.
    let json: serde_json::Value = serde_json::from_str(header).map_err(|e| damaged(path, &e.to_string()))?;
    let schema = ["schema", "format"].iter().find_map(|key| json["progress"][key].as_u64());
    if let Some(schema) = schema.filter(|&schema| schema > u64::from(SCHEMA)) {
        return Err(Error::Newer { path: path.to_owned(), schema, known: SCHEMA });
    }
    let mut header: Header = serde_json::from_value(json).map_err(|e| damaged(path, &e.to_string()))?;
    // It goes on as one of this version.
    header.progress.schema = SCHEMA;
    Ok(header)
}

/// Name of the checkpoint of a step.
pub fn name(step: u64) -> String {
    format!("step-{step:012}.safetensors")
}

/// The step in a checkpoint's name.
pub fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".safetensors"))?;
    digits.parse().ok()
}

/// Checkpoints in a folder by rising step.
///
/// # Errors
/// A folder that cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = step_of(&name) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::Params;
    use crate::spec::Init;

    fn example() -> (TrainState, Progress) {
        let params = Params::init(5, 7, false, &Init::Linear, 1);
        let mut state = TrainState::start(params, true);
        state.step = 3;
        state.m.w_enc[4] = 0.5;
        state.idle_rows[2] = 77;
        let progress = Progress { step: 3, ..Progress::start(Settings::from_toml("k = 2"), 99) };
        (state, progress)
    }

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(3));
        let (state, progress) = example();
        save(&path, &state, &progress).unwrap();
        let like = TrainState::start(Params::zeros(5, 7, false), true);
        assert_eq!(load(&path, &like).unwrap(), (state, progress));
        assert_eq!(list(folder.path()).unwrap(), [(3, path)]);
    }

    #[test]
    fn a_checkpoint_of_version_0_1_0_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(3));
        let (state, progress) = example();
        let tensors = tensors(&state);
        let crc = tensors.iter().map(|t| (t.name.clone(), crc32fast::hash(t.bytes))).collect();
        let mut header = serde_json::to_value(Header { progress: progress.clone(), crc }).unwrap();
        // What that version did not know.
        let old = header["progress"].as_object_mut().unwrap();
        assert!(
            old.remove("parts").is_some()
                && old.remove("schema").is_some()
                && old.remove("settings").is_some()
        );
        old.insert("format".into(), 1.into());
        old.insert("config".into(), "# Resolved by sae 0.1.0\nk = 2\nkeep-checkpoints = 3\n".into());
        let header = header.to_string();
        let value = format!("{:08x} {header}", crc32fast::hash(header.as_bytes()));
        files::write_safetensors(&path, &tensors, [(KEY, value)]).unwrap();
        assert_eq!(load(&path, &state).unwrap(), (state, progress));
    }

    #[test]
    fn a_newer_checkpoint_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(3));
        let (state, progress) = example();
        save(&path, &state, &Progress { schema: 3, ..progress }).unwrap();
        let error = load(&path, &state).unwrap_err().to_string();
        assert!(error.contains("written by a newer sae (schema 3, this one reads up to 2)"), "{error}");
    }

    #[test]
    fn figures_that_are_not_finite_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(3));
        let (state, mut progress) = example();
        for best in [None, Some((2, f64::NAN)), Some((2, f64::INFINITY)), Some((2, 0.25))] {
            progress.best = best;
            save(&path, &state, &progress).unwrap();
            let finite = best.filter(|(_, fvu)| fvu.is_finite());
            assert_eq!(super::progress(&path).unwrap(), Progress { best: finite, ..progress.clone() });
        }
    }

    #[test]
    fn cutting_a_checkpoint_anywhere_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(3));
        let (state, progress) = example();
        save(&path, &state, &progress).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = load(&path, &state).unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains("step-") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(3));
        let (state, progress) = example();
        save(&path, &state, &progress).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for byte in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1 << (byte % 8);
            std::fs::write(&path, &bytes).unwrap();
            match load(&path, &state) {
                Err(_) => {}
                // Some bits of the JSON around the values carry nothing (a space for a line break).
                Ok(back) => assert_eq!(back, (state.clone(), progress.clone()), "byte {byte}"),
            }
        }
    }
}
