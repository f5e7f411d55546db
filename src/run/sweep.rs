//! Many runs on the same rows, which are read once: every combination of some options, one after the other.

use super::folder::names;
use super::outputs::{self, Summary};
use super::rows::{Reading, find, keep_known_rows, known_rows, memory_of, tables_of_split, training_rows};
use super::{Rows, Session, check_folder, resume, start};
use crate::config::{Options, RowMemory};
use crate::console;
use crate::data::Embeddings;
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt::check_flag;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    let known = known_rows(&out.join(names::ROWS));
    let reading = Reading { options: &base, groups: groups.as_deref(), memory, known, quiet: session.quiet };
    let data = reading.read(found, |data| training_sets(data, splits.as_deref(), &all))?;
    check_flag(session.stop)?;
    base.memory = data.is_streamed().then_some(RowMemory::Bytes(memory));
    let data = Arc::new(data);
    std::fs::create_dir_all(&out).map_err(Error::io(&out, "create"))?;
    files::write_whole(&out.join(SWEEP), text(&base)?.as_bytes())?;
    keep_known_rows(&out.join(names::ROWS), &data)?;

    let n = all.len();
    let mut done = vec![];
    for (i, (name, mut options)) in all.into_iter().enumerate() {
        options.memory = base.memory;
        let folder = out.join(&name);
        if !session.quiet {
            console::tell(format_args!("[{}/{n}] {name}", i + 1));
        }
        let rows = Some(Rows::Files(data.clone()));
        let outcome = match outputs::read_summary(&folder.join(names::SUMMARY)) {
            Ok(Some(summary)) => Ok(summary),
            Ok(None) if folder.join(names::CONFIG).is_file() => resume(&folder, rows, session),
            Ok(None) => start(&options, rows, &folder, false, session),
            Err(error) => Err(error),
        };
        match &outcome {
            Err(Error::Interrupted(what)) => {
                return Err(Error::Interrupted(format!(
                    "{name}: {what}; the same `sae sweep` goes on with all that are left"
                )));
            }
            Err(error) if !session.quiet => console::warn(format_args!("{name}: {error}")),
            _ => {}
        }
        done.push(Member { name, folder, outcome });
    }
    Ok(done)
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
