//! The processes that train a run together, as one of them sees the others; a process that is alone is the first of one.
//!
//! Every rank loads the rows and goes through the same steps; what decides about them must be the same on all. Only the first
//! makes the folder, prints, and writes what is not of its latents alone. A file with a row for each latent is one file, which
//! every rank writes its own part of: whoever reads it need not know how many there were.

use super::checkpoint::{self, RunId, Stored};
use super::folder::names;
use crate::backend::{DeviceChoice, Selected};
use crate::console;
use crate::error::{Error, Result};
use crate::files::{self, Layout, Tensor, Unfinished};
use crate::model::shard::Shard;
use crate::model::{Fill, Params, TrainState, is_of_all_latents};
use crate::peers::{End, Peers, Place, Timing};
use crate::rows::{RowSource, Shares};
use crate::train::{Progress, Stop};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempPath;

/// How often a training asks whether to stop until the ranks ask each other: what one of them was told, all must heed at the
/// same step.
const ASKED: u64 = 16;

/// The ranks of a run.
pub(super) struct Team {
    /// `None` where the process is alone.
    peers: Option<Arc<Peers>>,
    /// Ranks that there would be, where there are none yet.
    planned: usize,
    /// Whether this rank ends by an error of its own, which it tells itself.
    fails: Arc<AtomicBool>,
}

/// What a rank found in its part of a checkpoint.
#[derive(Serialize, Deserialize)]
struct Found {
    /// What is wrong with the file.
    damage: Option<String>,
    /// Checksum and length of its part of each tensor.
    parts: Vec<(u32, u64)>,
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::Failed(format!("what ranks tell each other cannot be read: {e}; please report this"))
}

fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(failed)
}

fn of_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(failed)
}

/// The checksum of parts that follow each other.
fn combined(parts: impl Iterator<Item = (u32, u64)>) -> u32 {
    let mut all = crc32fast::Hasher::new();
    parts.for_each(|(crc, len)| all.combine(&crc32fast::Hasher::new_with_initial_len(crc, len)));
    all.finalize()
}

/// A file of the ranks of the run in `run`: beside the folder, which may not be there yet.
fn beside(run: &Path, what: &str) -> Result<PathBuf> {
    let run = std::path::absolute(run).map_err(Error::io(run, "find"))?;
    let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(run.with_file_name(format!(".{name}.{what}")))
}

impl Team {
    /// A process that is alone.
    pub(super) fn alone() -> Self {
        Self::planned(1)
    }

    /// What a run of so many ranks would be, seen from a process that is alone.
    pub(super) fn planned(ranks: usize) -> Self {
        Self { peers: None, planned: ranks, fails: Arc::default() }
    }

    /// Meets the other ranks of `place`, which train the run in the folder `run` with the same `command`. From here on, those
    /// that are not the first are silent, and whatever ends one of them ends all.
    pub(super) fn join(place: Option<&Place>, run: &Path, command: &str) -> Result<Self> {
        let Some(place) = place else { return Ok(Self::alone()) };
        let token =
            format!("{} {:016x}", env!("CARGO_PKG_VERSION"), xxhash_rust::xxh3::xxh3_64(command.as_bytes()));
        let (own, folder, fails) = (place.rank, run.to_owned(), Arc::<AtomicBool>::default());
        let failing = fails.clone();
        let on_end = Box::new(move |end: &End| {
            let another = !failing.load(Ordering::SeqCst);
            // One line of all ranks, which is the first one's unless that is gone.
            if another && (own == 0 || end.unheard) {
                console::insist(format_args!("error: {end}{}", next_step(&folder)));
            }
            another.then_some(1)
        });
        // By which they find the first of them.
        let address = beside(run, "ranks.json")?;
        if own == 0
            && let Some(parent) = address.parent()
        {
            std::fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        }
        let peers = Peers::join(place.clone(), &address, &token, Timing::default(), on_end)?;
        if own > 0 {
            console::silence();
        }
        Ok(Self { peers: Some(Arc::new(peers)), planned: 1, fails })
    }

    pub(super) fn peers(&self) -> Option<&Arc<Peers>> {
        self.peers.as_ref()
    }

    /// Whether this is the rank that makes the folder, prints, and writes.
    pub(super) fn is_first(&self) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.place().rank == 0)
    }

    /// Ranks of all.
    pub(super) fn count(&self) -> usize {
        self.peers.as_ref().map_or(self.planned, |peers| peers.place().count)
    }

    /// Ranks on this machine.
    pub(super) fn on_this_node(&self) -> usize {
        self.peers.as_ref().map_or(1, |peers| peers.place().local_count)
    }

    /// Which of `latents` this rank has.
    pub(super) fn shard(&self, latents: usize) -> Result<Shard> {
        match &self.peers {
            None => Ok(Shard::whole(latents)),
            Some(peers) => Shard::of(peers.place().rank, peers.place().count, latents),
        }
    }

    /// The rows as this rank reads them in steps.
    pub(super) fn share(&self, rows: Arc<dyn RowSource>) -> Arc<dyn RowSource> {
        let place = self.peers.as_ref().map(|peers| peers.place());
        match place.and_then(|place| Shares::of(&rows, place.rank, place.count)) {
            Some(shares) => Arc::new(shares),
            None => rows,
        }
    }

    /// Waits until all ranks are here.
    pub(super) fn meet(&self) -> Result<()> {
        self.peers.as_ref().map_or(Ok(()), |peers| peers.exchange(&[]).map(drop))
    }

    /// The least of what ranks bring.
    pub(super) fn least(&self, own: u64) -> Result<u64> {
        let Some(peers) = &self.peers else { return Ok(own) };
        let all = peers.exchange(&own.to_le_bytes())?;
        let numbers =
            all.iter().map(|bytes| Ok(u64::from_le_bytes(bytes.as_slice().try_into().map_err(failed)?)));
        Ok(numbers.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or(own))
    }

    /// What the first rank has, on all of them.
    pub(super) fn of_first<T: Serialize + DeserializeOwned>(
        &self,
        own: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(peers) = &self.peers else { return own() };
        let own = if self.is_first() { to_bytes(&own()?)? } else { vec![] };
        of_bytes(&peers.from_first(&own)?)
    }

    /// Fails where ranks bring different bytes.
    pub(super) fn agree(&self, what: &str, own: &[u8]) -> Result<()> {
        let Some(peers) = &self.peers else { return Ok(()) };
        let all = peers.exchange(&xxhash_rust::xxh3::xxh3_64(own).to_le_bytes())?;
        match all.iter().position(|bytes| Some(bytes) != all.first()) {
            Some(rank) => Err(Error::Failed(format!(
                "rank {rank} has other {what} than rank 0: all ranks need the same files and processors of one kind"
            ))),
            None => Ok(()),
        }
    }

    /// What says whether to stop: `told` here, or to any other rank.
    pub(super) fn stop<'a>(&'a self, told: &'a AtomicBool) -> AnyTold<'a> {
        AnyTold { team: self, told, asked: 0 }
    }

    /// Tells the other ranks of an error of this one, which ends them.
    pub(super) fn told<T>(&self, result: Result<T>) -> Result<T> {
        if let (Some(peers), Err(error)) = (&self.peers, &result) {
            self.fails.store(true, Ordering::SeqCst);
            peers.fail(&error.to_string());
        }
        result
    }

    /// Waits for all ranks to be done: whatever they do after it concerns nobody else.
    pub(super) fn finish(&self) -> Result<()> {
        self.peers.as_ref().map_or(Ok(()), |peers| peers.finish())
    }

    /// Checksums of tensors of which every rank has its latents' part.
    fn checksums(&self, tensors: &[Tensor<'_>]) -> Result<Vec<u32>> {
        let own: Vec<(u32, u64)> =
            tensors.iter().map(|t| (crc32fast::hash(t.bytes), t.bytes.len() as u64)).collect();
        let Some(peers) = &self.peers else { return Ok(own.into_iter().map(|(crc, _)| crc).collect()) };
        let all = peers.exchange(&to_bytes(&own)?)?;
        let all = all.iter().map(|bytes| of_bytes(bytes)).collect::<Result<Vec<_>>>()?;
        all_of(&all, tensors.iter().map(|t| t.name.as_str()))
    }

    /// Writes a checkpoint of a state of which every rank has its part of `latents`.
    pub(super) fn save(
        &self,
        path: &Path,
        state: &TrainState,
        latents: usize,
        run: &RunId,
        progress: &Progress,
    ) -> Result<()> {
        let tensors = checkpoint::tensors(state);
        let metadata = checkpoint::metadata(&tensors, self.checksums(&tensors)?, run, progress)?;
        self.write(path, &tensors, latents, metadata)
    }

    /// Writes a safetensors file, whole or not at all, of tensors of which every rank has its part of `latents`. What is not by
    /// latents, and the metadata, are those of the first rank.
    pub(super) fn write<'a>(
        &self,
        path: &Path,
        tensors: &[Tensor<'_>],
        latents: usize,
        metadata: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Result<()> {
        let Some(peers) = &self.peers else { return files::write_safetensors(path, tensors, metadata) };
        let before = self.shard(latents)?.latents().start;
        let whole = |t: &Tensor<'_>| {
            let mut shape = t.shape.clone();
            if !is_of_all_latents(&t.name) {
                shape[0] = latents;
            }
            shape
        };
        let named: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.dtype, whole(t))).collect();
        let layout = Layout::new(path, &named, metadata)?;
        let unfinished = if self.is_first() { Some(Unfinished::new(path, &layout)?) } else { None };
        let (name, start) = self.of_first(|| {
            let name = unfinished.as_ref().map(|file| file.path().to_owned()).unwrap_or_default();
            Ok((name, layout.start()))
        })?;
        let parts = tensors.iter().zip(layout.places()).filter_map(|(tensor, place)| {
            let row = tensor.bytes.len() / tensor.shape[0].max(1);
            match is_of_all_latents(&tensor.name) {
                true => self.is_first().then_some((start + place, tensor.bytes)),
                false => Some((start + place + (before * row) as u64, tensor.bytes)),
            }
        });
        files::write_parts(&name, parts).map_err(Error::io(path, "write"))?;
        peers.exchange(&[])?;
        unfinished.map_or(Ok(()), Unfinished::finish)
    }

    /// This rank's part of the weights of `latents` that the first rank makes, to which `own` has the places. They go through a file
    /// beside the run folder, which is gone afterwards.
    ///
    /// # Errors
    /// What making them gives; as [`Team::read`].
    pub(super) fn of_whole(
        &self,
        run: &Path,
        id: &RunId,
        latents: usize,
        mut own: Params,
        make: impl FnOnce() -> Result<Params>,
    ) -> Result<Params> {
        let mut written = None;
        let path = self.of_first(|| {
            let whole = make()?;
            let tensors = whole.tensors().into_iter();
            let tensors: Vec<_> =
                tensors.map(|(name, shape, values)| Tensor::f32(name.into(), shape, values)).collect();
            let sums = tensors.iter().map(|t| crc32fast::hash(t.bytes)).collect();
            let metadata = checkpoint::metadata(&tensors, sums, id, &Progress::default())?;
            let path = beside(run, "start.safetensors")?;
            files::write_safetensors(&path, &tensors, metadata)?;
            // Deleted whatever comes of it.
            written = Some(TempPath::try_from_path(&path).map_err(Error::io(&path, "find"))?);
            Ok(path)
        })?;
        self.read(&path, latents, &mut |_, read| {
            own.tensors_mut()
                .into_iter()
                .try_for_each(|(name, values)| read(name, bytemuck::cast_slice_mut(values)))
        })?;
        Ok(own)
    }

    /// Reads this rank's part of a checkpoint of `latents` over `state`.
    ///
    /// # Errors
    /// As [`Team::read`].
    pub(super) fn load_into(
        &self,
        path: &Path,
        latents: usize,
        state: &mut TrainState,
    ) -> Result<(RunId, Progress)> {
        let stored = self.read(path, latents, &mut |_, read| state.fill(read))?;
        state.step = stored.progress().step;
        Ok(stored.into_parts())
    }

    /// Opens a checkpoint of `latents` and has `use_it` read this rank's part of its tensors; the checksums of all parts together
    /// are compared after that.
    ///
    /// # Errors
    /// [`Error::Model`], on every rank where any of them finds damage; [`Error::Io`].
    pub(super) fn read(&self, path: &Path, latents: usize, use_it: &mut UseStored<'_>) -> Result<Stored> {
        let Some(peers) = &self.peers else {
            let mut stored = Stored::open(path)?;
            let step = stored.progress().step;
            use_it(step, &mut |name, out| stored.read(name, out))?;
            return Ok(stored);
        };
        let own = self.shard(latents)?.latents();
        let (mut names, mut parts) = (vec![], vec![]);
        let read = Stored::open(path).and_then(|mut stored| {
            let step = stored.progress().step;
            use_it(step, &mut |name, out| {
                let row = out.len() / own.len();
                let (from, all) =
                    if is_of_all_latents(name) { (0, out.len()) } else { (own.start * row, latents * row) };
                stored.read_part(name, all, from, out)?;
                names.push(name.to_owned());
                parts.push((crc32fast::hash(out), out.len() as u64));
                Ok(())
            })?;
            Ok(stored)
        });
        let damage = match &read {
            Ok(_) => None,
            Err(Error::Model { what, .. }) => Some(what.clone()),
            Err(_) => return read,
        };
        let all = peers.exchange(&to_bytes(&Found { damage, parts })?)?;
        let all = all.iter().map(|bytes| of_bytes::<Found>(bytes)).collect::<Result<Vec<_>>>()?;
        if let Some(what) = all.iter().find_map(|found| found.damage.clone()) {
            return Err(Error::Model { path: path.to_owned(), what });
        }
        let stored = read?;
        let all: Vec<_> = all.into_iter().map(|found| found.parts).collect();
        let sums = all_of(&all, names.iter().map(String::as_str))?;
        names.iter().zip(sums).try_for_each(|(name, sum)| stored.check(name, sum))?;
        Ok(stored)
    }

    /// The device that this rank computes on.
    pub(super) fn device(&self, choice: DeviceChoice, quiet: bool) -> Result<Selected> {
        match &self.peers {
            // There may be no GPU where a run is planned.
            None if self.planned > 1 => Ok(Selected::Cuda(0)),
            None => choice.select(quiet),
            Some(peers) => choice.select_of_rank(peers.place().local_rank),
        }
    }
}

/// Stops all ranks at the same step, once one of them is told to.
pub(super) struct AnyTold<'a> {
    team: &'a Team,
    told: &'a AtomicBool,
    asked: u64,
}

impl Stop for AnyTold<'_> {
    fn before_step(&mut self, done: &mut dyn FnMut() -> Result<()>) -> Result<bool> {
        let told = self.told.load(Ordering::Relaxed);
        let Some(peers) = &self.team.peers else { return Ok(told) };
        self.asked += 1;
        if self.asked % ASKED != 1 {
            return Ok(false);
        }
        done()?;
        peers.any(told)
    }

    /// Ranks go through an evaluation together, to its end.
    fn within_evaluation(&mut self) -> bool {
        self.team.peers.is_none() && self.told.load(Ordering::Relaxed)
    }
}

/// Is given the step of a checkpoint and what reads its tensors.
type UseStored<'a> = dyn FnMut(u64, &mut Fill<'_>) -> Result<()> + 'a;

/// Checksums of whole tensors from those that each rank has of its part.
fn all_of<'a>(ranks: &[Vec<(u32, u64)>], names: impl Iterator<Item = &'a str>) -> Result<Vec<u32>> {
    let sum = |(i, name): (usize, &str)| {
        let parts: Option<Vec<(u32, u64)>> = ranks.iter().map(|parts| parts.get(i).copied()).collect();
        let parts = parts.ok_or_else(|| failed("a checksum is missing"))?;
        let ranks = if is_of_all_latents(name) { 1 } else { parts.len() };
        Ok(combined(parts.into_iter().take(ranks)))
    };
    names.enumerate().map(sum).collect()
}

/// How the run in a folder goes on, once there is something that can.
fn next_step(run: &Path) -> String {
    if !run.join(names::CONFIG).is_file() {
        return String::new();
    }
    let run = run.display();
    format!("; the run is in {run}: go on with `sae train --resume {run}`, started in the same way")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_of_parts_is_that_of_the_whole() {
        let whole: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        for cut in [0, 1, 500, 1000] {
            let parts = [&whole[..cut], &whole[cut..]].map(|part| (crc32fast::hash(part), part.len() as u64));
            assert_eq!(combined(parts.into_iter()), crc32fast::hash(&whole));
        }
    }
}
