//! Checkpoints: everything that a run needs to go on to the same bits.
//!
//! A checkpoint is a safetensors file: the weights (`w_enc`, ...), Adam's moments (`m.*`, `v.*`), the moving
//! average (`ema.*`) where there is one, `idle_rows`, and as metadata [`SCHEMA`], the [`RunId`] and the [`Progress`] with a
//! CRC-32 of each tensor. Batches and noise are functions of the step, so no generator's state is stored.

use crate::config::{Config, Settings};
use crate::error::{Error, Result};
use crate::files::{self, Tensor};
use crate::model::TrainState;
use crate::train::Progress;
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

/// Which run a checkpoint belongs to, so that none is ever mixed up with another run's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunId {
    /// What decides its weights.
    pub settings: Settings,
    /// Hash of ids and values of the data.
    pub data: u64,
}

impl RunId {
    /// Of a run of `config` on data of this fingerprint.
    pub fn of(config: &Config, data: u64) -> Self {
        Self { settings: Settings::of(config), data }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    schema: u32,
    run: RunId,
    progress: Progress,
    crc: BTreeMap<String, u32>,
}

impl Header {
    /// From what version 0.1.0 wrote: it kept the run among the progress, its settings as the text of `config.toml`.
    fn from_0_1_0(json: serde_json::Value) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Old {
            config: String,
            data: u64,
        }
        let old = Old::deserialize(&json["progress"])?;
        Ok(Self {
            schema: 1,
            run: RunId { settings: Settings::from_toml(&old.config), data: old.data },
            progress: Progress::deserialize(&json["progress"])?,
            crc: BTreeMap::deserialize(&json["crc"])?,
        })
    }
}

/// What a checkpoint of `state` holds.
pub(super) fn tensors(state: &TrainState) -> Vec<Tensor<'_>> {
    let named = state.tensors().into_iter().map(|(name, shape, values)| Tensor::f32(name, shape, values));
    let idle = Tensor::u32("idle_rows".into(), vec![state.idle_rows.len()], &state.idle_rows);
    named.chain([idle]).collect()
}

/// The metadata of a checkpoint of tensors with these checksums.
///
/// # Errors
/// None in practice: what it says can be said in JSON.
pub(super) fn metadata(
    tensors: &[Tensor<'_>],
    sums: Vec<u32>,
    run: &RunId,
    progress: &Progress,
) -> Result<[(&'static str, String); 1]> {
    metadata_of(SCHEMA, tensors, sums, run, progress)
}

fn metadata_of(
    schema: u32,
    tensors: &[Tensor<'_>],
    sums: Vec<u32>,
    run: &RunId,
    progress: &Progress,
) -> Result<[(&'static str, String); 1]> {
    let crc = tensors.iter().map(|t| t.name.clone()).zip(sums).collect();
    let header = Header { schema, run: run.clone(), progress: progress.clone(), crc };
    let header = serde_json::to_string(&header)
        .map_err(|e| Error::Failed(format!("the checkpoint's header cannot be written: {e}")))?;
    // The header carries the tensors' sums; its own goes in front of it.
    Ok([(KEY, format!("{:08x} {header}", crc32fast::hash(header.as_bytes())))])
}

/// Writes a checkpoint, whole or not at all.
///
/// # Errors
/// [`Error::Io`] as the disk gives it.
pub fn save(path: &Path, state: &TrainState, run: &RunId, progress: &Progress) -> Result<()> {
    let tensors = tensors(state);
    let sums = tensors.iter().map(|t| crc32fast::hash(t.bytes)).collect();
    files::write_safetensors(path, &tensors, metadata(&tensors, sums, run, progress)?)
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::Model { path: path.to_owned(), what: format!("is damaged ({what})") }
}

/// Reads a checkpoint over `state`; no second state is in memory meanwhile.
///
/// # Errors
/// As [`Stored::open`] and [`Stored::read`]; `state` is then a mixture.
pub fn load_into(path: &Path, state: &mut TrainState) -> Result<(RunId, Progress)> {
    let mut stored = Stored::open(path)?;
    state.fill(&mut |name, out| stored.read(name, out))?;
    state.step = stored.header.progress.step;
    Ok(stored.into_parts())
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

    /// Which run it belongs to.
    pub fn run(&self) -> &RunId {
        &self.header.run
    }

    /// Where the run was.
    pub fn progress(&self) -> &Progress {
        &self.header.progress
    }

    /// Both.
    pub(super) fn into_parts(self) -> (RunId, Progress) {
        (self.header.run, self.header.progress)
    }

    /// Reads a tensor, as [`crate::model::Fill`] asks for it.
    ///
    /// # Errors
    /// [`Error::Model`] if it is missing, of another size or altered; [`Error::Io`].
    pub fn read(&mut self, name: &str, out: &mut [u8]) -> Result<()> {
        self.read_part(name, out.len(), 0, out)?;
        self.check(name, crc32fast::hash(out))
    }

    /// Reads the bytes from `from` on of a tensor of `all` bytes, whose checksum nobody compares yet.
    ///
    /// # Errors
    /// As for [`Stored::read`].
    pub(super) fn read_part(&mut self, name: &str, all: usize, from: usize, out: &mut [u8]) -> Result<()> {
        let Self { path, file, tensors, data, .. } = self;
        let info = tensors.info(name).ok_or_else(|| damaged(path, &format!("tensor {name} is missing")))?;
        let dtype = if name == "idle_rows" { Dtype::U32 } else { Dtype::F32 };
        let (begin, end) = info.data_offsets;
        if info.dtype != dtype || end - begin != all || from + out.len() > all {
            return Err(damaged(path, &format!("tensor {name} has another type or size than the run's")));
        }
        let at = SeekFrom::Start(*data + (begin + from) as u64);
        file.seek(at).and_then(|_| file.read_exact(out)).map_err(Error::io(path, "read"))
    }

    /// Fails unless this is the checksum of a tensor.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub(super) fn check(&self, name: &str, sum: u32) -> Result<()> {
        if self.header.crc.get(name) != Some(&sum) {
            return Err(damaged(&self.path, &format!("tensor {name} does not match its checksum")));
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
    // Version 0.1.0 called it format, and kept it elsewhere.
    let schema = json["schema"].as_u64().or_else(|| json["progress"]["format"].as_u64());
    match schema {
        Some(1) => Header::from_0_1_0(json),
        Some(schema) if schema > u64::from(SCHEMA) => {
            return Err(Error::Newer { path: path.to_owned(), schema, known: SCHEMA });
        }
        _ => serde_json::from_value(json),
    }
    .map_err(|e| damaged(path, &e.to_string()))
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

    fn save_as(schema: u32, path: &Path, state: &TrainState, run: &RunId, progress: &Progress) -> Result<()> {
        let tensors = tensors(state);
        let sums = tensors.iter().map(|t| crc32fast::hash(t.bytes)).collect();
        files::write_safetensors(path, &tensors, metadata_of(schema, &tensors, sums, run, progress)?)
    }

    fn run() -> RunId {
        RunId { settings: Settings::from_toml("k = 2"), data: 99 }
    }

    /// Reads a checkpoint into a state of the shapes of `like`.
    fn load(path: &Path, like: &TrainState) -> Result<(TrainState, Progress)> {
        let mut state = like.clone();
        let (of, progress) = load_into(path, &mut state)?;
        assert_eq!(of, run());
        Ok((state, progress))
    }

    fn example() -> (TrainState, Progress) {
        let params = Params::init(5, 7, false, &Init::Linear, 1);
        let mut state = TrainState::start(params, true);
        state.step = 3;
        state.m.w_enc[4] = 0.5;
        state.idle_rows[2] = 77;
        (state, Progress { step: 3, ..Progress::default() })
    }

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(3));
        let (state, progress) = example();
        save(&path, &state, &run(), &progress).unwrap();
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
        let crc: BTreeMap<String, u32> =
            tensors.iter().map(|t| (t.name.clone(), crc32fast::hash(t.bytes))).collect();
        let mut header = serde_json::json!({ "progress": progress, "crc": crc });
        let old = header["progress"].as_object_mut().unwrap();
        // What that version did not know.
        assert!(old.remove("parts").is_some());
        old.insert("format".into(), 1.into());
        old.insert("data".into(), 99.into());
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
        save_as(3, &path, &state, &run(), &progress).unwrap();
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
            save(&path, &state, &run(), &progress).unwrap();
            let finite = best.filter(|(_, fvu)| fvu.is_finite());
            assert_eq!(load(&path, &state).unwrap().1, Progress { best: finite, ..progress.clone() });
        }
    }

    #[test]
    fn cutting_a_checkpoint_anywhere_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(3));
        let (state, progress) = example();
        save(&path, &state, &run(), &progress).unwrap();
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
        save(&path, &state, &run(), &progress).unwrap();
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
