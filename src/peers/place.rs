//! Which rank a process is: the variables of those who start it.

use crate::error::{Error, Result};
use std::fmt;

/// Who started the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `torchrun --no-python sae ...`.
    Torchrun,
    /// `mpirun sae ...` of Open MPI.
    Mpirun,
    /// `srun sae ...` of SLURM.
    Srun,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "torchrun",
            Self::Mpirun => "mpirun",
            Self::Srun => "srun",
        })
    }
}

/// Names of a launcher's variables: rank, ranks, rank on this node, ranks on this node.
type Names = (Launcher, &'static str, &'static str, &'static str, &'static str);

/// In the order in which they are looked for: `torchrun` may run under `srun`, and `mpirun` starts its helpers by it.
///
/// `SLURM_STEP_NUM_TASKS` is there under `srun` alone. `SLURM_NTASKS` is set in a batch script too, in which a command that stands
/// alone is one process, whatever the job asked for.
const LAUNCHERS: [Names; 3] = [
    (Launcher::Torchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    (
        Launcher::Mpirun,
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    (Launcher::Srun, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
];

/// Which of a run's processes this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The rank, from 0.
    pub rank: usize,
    /// Ranks in all.
    pub count: usize,
    /// The rank among those of this node: the number of its GPU.
    pub local_rank: usize,
    /// Ranks of this node.
    pub local_count: usize,
    /// Who started them.
    pub launcher: Launcher,
    /// The node of rank 0, where the launcher names it.
    pub master: Option<String>,
}

/// Reads a variable.
pub type Get<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Place {
    /// From the variables of the launcher; `None` where this process is alone.
    ///
    /// # Errors
    /// [`Error::Usage`]: variables that are no numbers, or do not go together.
    pub fn of(get: Get<'_>) -> Result<Option<Self>> {
        for (launcher, rank, count, local_rank, local_count) in LAUNCHERS {
            let (Some(_), Some(_)) = (get(rank), get(count)) else {
                if launcher == Launcher::Torchrun && number(get, count)?.is_some_and(|ranks| ranks > 1) {
                    return Err(Error::Usage(format!(
                        "{count} is set, and {rank} is not: start the ranks with `torchrun --no-python`, or `unset {count}`"
                    )));
                }
                continue;
            };
            let needed =
                |name| number(get, name)?.ok_or_else(|| Error::Usage(format!("{launcher} sets no {name}")));
            let (rank_number, ranks) = (needed(rank)?, needed(count)?);
            if rank_number >= ranks {
                return Err(Error::Usage(format!("{rank} is {rank_number} where {count} is {ranks}")));
            }
            if ranks < 2 {
                return Ok(None);
            }
            let local = needed(local_rank)?;
            let node = number(get, "SLURM_NODEID")?.unwrap_or(0);
            let beside = get(local_count).and_then(|text| on_node(&text, node)).unwrap_or(local + 1);
            return Ok(Some(Self {
                rank: rank_number,
                count: ranks,
                local_rank: local,
                local_count: beside.max(local + 1),
                launcher,
                master: if launcher == Launcher::Torchrun { get("MASTER_ADDR") } else { None },
            }));
        }
        Ok(None)
    }
}

/// How many ranks there are to be, whether this is one of them or not.
///
/// # Errors
/// [`Error::Usage`]: `WORLD_SIZE` is no number.
pub fn world_size(get: Get<'_>) -> Result<usize> {
    match number(get, "WORLD_SIZE")? {
        Some(count) => Ok(count.max(1)),
        None => Ok(Place::of(get)?.map_or(1, |place| place.count)),
    }
}

/// How many ranks of a node there are to be: `LOCAL_WORLD_SIZE`, or eight.
///
/// # Errors
/// [`Error::Usage`]: it is no number.
pub fn per_node(get: Get<'_>) -> Result<usize> {
    Ok(number(get, "LOCAL_WORLD_SIZE")?.map_or(8, |count| count.max(1)))
}

fn number(get: Get<'_>, name: &str) -> Result<Option<usize>> {
    let Some(text) = get(name) else { return Ok(None) };
    let parsed = text.trim().parse();
    parsed.map(Some).map_err(|_| Error::Usage(format!("{name} is `{text}`, which is no number")))
}

/// The number of a node in a list such as `4(x2),3`: nodes 0 and 1 have 4, node 2 has 3.
fn on_node(text: &str, node: usize) -> Option<usize> {
    let mut first = 0;
    for part in text.split(',') {
        let (tasks, times) = match part.trim().strip_suffix(')').and_then(|part| part.split_once("(x")) {
            Some((tasks, times)) => (tasks.parse().ok()?, times.parse().ok()?),
            None => (part.trim().parse().ok()?, 1),
        };
        // A plain number is that of this node, whichever it is.
        if node < first + times || !text.contains(['(', ',']) {
            return Some(tasks);
        }
        first += times;
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        let get =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Place::of(&get)
    }

    #[test]
    fn every_launcher_says_which_rank_this_is() {
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "n0"),
        ];
        let place = of(&torchrun).unwrap().unwrap();
        assert_eq!((place.rank, place.count, place.local_rank, place.local_count), (5, 8, 1, 4));
        assert_eq!((place.launcher, place.master), (Launcher::Torchrun, Some("n0".into())));
        let srun = [
            ("SLURM_PROCID", "6"),
            ("SLURM_STEP_NUM_TASKS", "7"),
            ("SLURM_LOCALID", "2"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x2),3"),
        ];
        let place = of(&srun).unwrap().unwrap();
        assert_eq!((place.rank, place.count, place.local_count, place.launcher), (6, 7, 3, Launcher::Srun));
        // mpirun in a job of SLURM, whose own variables are those of mpirun's helpers.
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("SLURM_PROCID", "1"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_NODEID", "1"),
        ];
        let place = of(&mpirun).unwrap().unwrap();
        assert_eq!((place.rank, place.count, place.local_count, place.launcher), (3, 4, 2, Launcher::Mpirun));
    }

    #[test]
    fn a_process_that_stands_alone_is_no_rank() {
        // A batch script, and ranks of one.
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")];
        assert_eq!(of(&batch).unwrap(), None);
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")]).unwrap(), None);
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(world_size(&|name| (name == "WORLD_SIZE").then(|| "64".into())).unwrap(), 64);
        assert_eq!(per_node(&|_| None).unwrap(), 8);
        assert_eq!(per_node(&|name| (name == "LOCAL_WORLD_SIZE").then(|| "4".into())).unwrap(), 4);
    }

    #[test]
    fn variables_that_do_not_go_together_are_named() {
        for (variables, named) in [
            (
                &[("RANK", "4"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")][..],
                "RANK is 4 where WORLD_SIZE is 4",
            ),
            (&[("RANK", "x"), ("WORLD_SIZE", "4")], "RANK is `x`"),
            (&[("WORLD_SIZE", "4")], "RANK is not"),
            (&[("RANK", "1"), ("WORLD_SIZE", "4")], "LOCAL_RANK"),
        ] {
            let error = of(variables).unwrap_err();
            assert!(error.to_string().contains(named) && error.exit_status() == 2, "{error}");
        }
    }
}
