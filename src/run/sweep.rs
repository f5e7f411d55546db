//! Many runs on the same rows, which are read once: every combination of some options.

use super::folder::names;
use super::outputs::{self, Summary};
use super::rows::{Reading, find, keep_known_rows, memory_of, tables_of_split, training_rows};
use super::team::Team;
use super::turns::{OneOf, Together, Turn};
use super::{Loaded, Memory, Rows, Session, check_folder, resume, start};
use crate::backend::{Selected, cuda};
use crate::config::{Options, RowMemory};
use crate::console;
use crate::data::Embeddings;
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt::check_flag;
use crate::memory::free;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What the folder of a sweep keeps its common options in.
pub const SWEEP: &str = "sweep.toml";

/// One run of a sweep.
pub struct Member {
    /// What it has of its own, as in `k=16,seed=1`; the name of its folder.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// What came of it.
    pub outcome: Result<Summary>,
}

/// The combinations of a grid of options and their values, the last option changing fastest; each with its name.
///
/// # Errors
/// A value that an option cannot have.
pub fn members(base: &Options, grid: &[(String, Vec<String>)]) -> Result<Vec<(String, Options)>> {
    let mut all = vec![(String::new(), base.clone())];
    for (key, values) in grid {
        let mut next = vec![];
        for (name, options) in &all {
            for value in values {
                let mut options = options.clone();
                options.set(key, value).map_err(|why| Error::Usage(format!("--{key} {value}: {why}")))?;
                options.check_ranges()?;
                // One value for all is no name.
                let own = if values.len() > 1 { format!("{key}={value}") } else { String::new() };
                let name = [name.as_str(), &own].into_iter().filter(|part| !part.is_empty());
                next.push((name.collect::<Vec<_>>().join(","), options));
            }
        }
        all = next;
    }
    if let [(name, _)] = &mut all[..]
        && name.is_empty()
    {
        *name = "run".into();
    }
    Ok(all)
}

/// Trains all members of a grid into folders in `out`, each to the bits of its own `sae train`. Those that are done are left
/// alone, and those that were interrupted go on: the same call resumes a sweep. One that fails does not stop the others.
///
/// # Errors
/// Data that cannot be read; a folder that holds something else, or a sweep with other options; [`Error::Interrupted`].
pub fn sweep(
    base: &Options,
    grid: &[(String, Vec<String>)],
    out: &Path,
    session: &Session<'_>,
) -> Result<Vec<Member>> {
    let mut base = base.clone();
    let found = find(&mut base)?;
    let (groups, splits) = tables_of_split(&mut base)?;
    let all = members(&base, grid)?;
    let out = check_folder("--out", out, &found.paths)?;
    let known = known(&out, &base)?;
    base.memory = base.memory.or(known);

    let memory = memory_of(&base);
    let (groups, run) = (groups.as_deref(), Some(&*out));
    let team = &Team::alone();
    let reading = Reading { options: &base, groups, memory, run, team, quiet: session.quiet };
    let data = reading.read(found, |data| training_sets(data, splits.as_deref(), &all))?;
    check_flag(session.stop)?;
    base.memory = data.is_streamed().then_some(RowMemory::Bytes(memory));
    let data = Arc::new(data);
    std::fs::create_dir_all(&out).map_err(Error::io(&out, "create"))?;
    files::write_whole(&out.join(SWEEP), text(&base)?.as_bytes())?;
    keep_known_rows(&out.join(names::ROWS), &data)?;

    let n = all.len();
    let members = all.into_iter().map(|(name, mut options)| {
        options.memory = base.memory;
        (out.join(&name), name, options)
    });
    let members: Vec<_> = members.collect();
    let mut done: Vec<(usize, Member)> = vec![];
    for Group { members: numbers, steps, .. } in groups_of(&members, &data, session) {
        let group: Vec<&Planned> = numbers.iter().map(|&member| &members[member]).collect();
        if !session.quiet {
            let names: Vec<&str> = group.iter().map(|(_, name, _)| name.as_str()).collect();
            let first = if group.len() > 1 { format!("{}-", done.len() + 1) } else { String::new() };
            console::tell(format_args!("[{first}{}/{n}] {}", done.len() + group.len(), names.join(" ")));
        }
        let outcomes = match &group[..] {
            [(folder, _, options)] => vec![train(folder, options, &data, None, session)],
            group => train_together(group, steps, &data, session),
        };
        let mut interrupted = None;
        for ((member, (folder, name, _)), outcome) in numbers.into_iter().zip(group).zip(outcomes) {
            match &outcome {
                Err(Error::Interrupted(what)) => {
                    interrupted = interrupted.or(Some(format!("{name}: {what}")))
                }
                Err(error) if !session.quiet => console::warn(format_args!("{name}: {error}")),
                _ => {}
            }
            done.push((member, Member { name: name.clone(), folder: folder.clone(), outcome }));
        }
        if let Some(what) = interrupted {
            return Err(Error::Interrupted(format!(
                "{what}; the same `sae sweep` goes on with all that are left"
            )));
        }
    }
    done.sort_by_key(|&(member, _)| member);
    Ok(done.into_iter().map(|(_, member)| member).collect())
}

/// Folder, name and options.
type Planned = (PathBuf, String, Options);

/// Trains a member, goes on with it, or takes what came of it before.
fn train(
    folder: &Path,
    options: &Options,
    data: &Arc<Embeddings>,
    turn: Option<Turn>,
    session: &Session<'_>,
) -> Result<Summary> {
    let rows = Some(Rows::Files(data.clone(), turn));
    match outputs::read_summary(&folder.join(names::SUMMARY))? {
        Some(summary) => Ok(summary),
        None if folder.join(names::CONFIG).is_file() => resume(folder, rows, session),
        None => start(options, rows, folder, false, session),
    }
}

/// Members that train together, by their numbers: those that see the same rows in the same order, as many as the memory
/// holds beside each other. Rows in memory are there for all members anyway, as are those that a card has.
fn groups_of(members: &[Planned], data: &Arc<Embeddings>, session: &Session<'_>) -> Vec<Group> {
    // A quarter stays free: a member takes more than its tensors.
    let most = match session.device.select(true) {
        // Beside the windows of rows, which are not there yet.
        Ok(Selected::Cpu) => free().map(|free| free.saturating_sub(data.bytes() as u64) / 4 * 3),
        Ok(Selected::Cuda(n)) => cuda::memory_of_card(n).map(|bytes| bytes / 4 * 3),
        Err(_) => None,
    };
    let most = most.unwrap_or(0);
    let mut groups: Vec<Group> = vec![];
    for (n, member) in members.iter().enumerate() {
        let own = if data.is_streamed() { alone(member, data, session) } else { Group::default() };
        let room = |group: &&mut Group| {
            group.order.is_some() && group.order == own.order && group.bytes.saturating_add(own.bytes) <= most
        };
        match groups.iter_mut().find(room) {
            Some(group) => {
                group.bytes += own.bytes;
                group.steps += own.steps;
                group.members.push(n);
            }
            None => groups.push(Group { members: vec![n], ..own }),
        }
    }
    groups
}

/// Members that train together.
#[derive(Default)]
struct Group {
    members: Vec<usize>,
    /// What the order of their rows depends on beside the rows: the seed, that of the split, and the batch size. `None` for
    /// one that trains alone.
    order: Option<(u64, u64, usize)>,
    /// Memory that they take beside the rows.
    bytes: u64,
    steps: u64,
}

/// Memory of a card that cuBLAS and the driver take for each member: a workspace of 32 MiB at most, and some more.
const OF_LIBRARIES: u64 = 40 << 20;

/// The group of a member alone.
fn alone((folder, _, options): &Planned, data: &Arc<Embeddings>, session: &Session<'_>) -> Group {
    let quiet = Session { quiet: true, draw: None, observer: None, ..*session };
    let settled = || {
        let rows = Some(Rows::Files(data.clone(), None));
        Loaded::new(options, rows, None, &Team::alone(), &quiet)?.settle(&Team::alone(), &quiet, false)
    };
    let finished = folder.join(names::SUMMARY).is_file();
    // What is wrong is said when its turn comes.
    let Some(prepared) = (!finished).then(settled).and_then(Result::ok) else { return Group::default() };
    let config = &prepared.config;
    let order = (config.seed, options.seed_of_split(), config.schedule.batch_size);
    let libraries = if let Selected::Cuda(_) = prepared.device { OF_LIBRARIES } else { 0 };
    Group {
        members: vec![],
        order: Some(order),
        bytes: Memory::new(&prepared).training + libraries,
        steps: config.schedule.steps,
    }
}

/// Trains members by turns: all of them take the steps of a window before the next one is read.
fn train_together(
    group: &[&Planned],
    steps: u64,
    data: &Arc<Embeddings>,
    session: &Session<'_>,
) -> Vec<Result<Summary>> {
    let together = Together::new(group.len(), steps, session.quiet);
    let outcomes = std::thread::scope(|scope| {
        let mut runs = vec![];
        for (run, ((folder, name, options), turn)) in group.iter().zip(Turn::of(group.len())).enumerate() {
            let (together, name) = (together.clone(), name.clone());
            let watch = OneOf { together, run, name, other: session.observer };
            runs.push(scope.spawn(move || {
                turn.wait();
                let watch = Mutex::new(watch);
                let session = Session { observer: Some(&watch), ..*session };
                train(folder, options, data, Some(turn), &session)
            }));
        }
        let panicked = |_| Err(Error::Failed("it came to a bad end; please report this".into()));
        runs.into_iter().map(|run| run.join().unwrap_or_else(panicked)).collect()
    });
    Together::finish(together);
    outcomes
}

/// The training rows of each split that members have.
fn training_sets(
    data: &Embeddings,
    splits: Option<&Path>,
    members: &[(String, Options)],
) -> Result<Vec<Vec<u32>>> {
    let mut seeds = HashSet::new();
    let differ = members.iter().filter(|(_, options)| seeds.insert(options.seed_of_split()));
    // A table is one split for all.
    let differ = differ.take(if splits.is_some() { 1 } else { usize::MAX });
    differ.map(|(_, options)| training_rows(data, splits, options)).collect()
}

/// The common options as the folder keeps them.
fn text(base: &Options) -> Result<String> {
    let body = toml::to_string(base)
        .map_err(|e| Error::Failed(format!("the options cannot be written as TOML: {e}")))?;
    Ok(format!("# What all runs in this folder have in common; `sae sweep` resumes it.\n{body}"))
}

/// The memory for rows that a sweep in `out` began with. Fails where there is something else, or a sweep of other options.
fn known(out: &Path, base: &Options) -> Result<Option<RowMemory>> {
    let path = out.join(SWEEP);
    if !path.is_file() {
        let mut entries = match std::fs::read_dir(out) {
            Ok(entries) => entries,
            Err(_) => return Ok(None),
        };
        return match entries.next() {
            None => Ok(None),
            Some(_) => Err(Error::Usage(format!(
                "--out {} holds something else than a sweep; name a folder that does not exist yet",
                out.display()
            ))),
        };
    }
    let before = Options::from_toml(&path)?;
    let memory = before.memory;
    let same = |options: &Options| Options { memory: None, ..options.clone() };
    if same(&before) != same(base) {
        return Err(Error::Usage(format!(
            "{} has other common options than these; give them again as they were, or name another --out",
            path.display()
        )));
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn members_are_all_combinations_named_by_what_they_have_of_their_own() {
        let values = |values: &[&str]| values.iter().map(|&v| v.to_owned()).collect::<Vec<_>>();
        let grid = [
            ("k".into(), values(&["4", "8"])),
            ("latents".into(), values(&["64"])),
            ("seed".into(), values(&["0", "1"])),
        ];
        let all = members(&Options::default(), &grid).unwrap();
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["k=4,seed=0", "k=4,seed=1", "k=8,seed=0", "k=8,seed=1"]);
        assert_eq!((all[2].1.k, all[2].1.latents, all[2].1.seed), (Some(8), Some(64), Some(0)));
        assert_eq!(members(&Options::default(), &grid[1..2]).unwrap()[0].0, "run");
        let error = members(&Options::default(), &[("k".into(), values(&["4", "x"]))]).unwrap_err();
        assert!(error.to_string().starts_with("--k x: "), "{error}");
    }
}
