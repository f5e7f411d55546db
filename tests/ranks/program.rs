//! `sae train` as several processes, by the variables of launchers and by a real `mpirun`: the run that they leave is that of
//! one process, whatever happens to one of them.

use super::runs::{self, Place, SAE, checkpoints, same_run};
use super::{MPIRUN, SRUN, TORCHRUN, compiler, stand_in, text};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Four groups of 128 latents, the last of which is not full.
const SIZES: [&str; 7] = [
    "--latents=400",
    "-k=4",
    "--batch-size=16",
    "--steps=24",
    "--eval-every=6",
    "--checkpoint-every=6",
    "--keep-checkpoints=9",
];

/// Processes that are started at once.
#[derive(Clone, Copy)]
struct Ranks<'a> {
    place: &'a Place,
    count: usize,
    launcher: &'a [&'a str; 3],
    /// Settings of the stand-in.
    settings: &'a [(&'a str, &'a str)],
}

impl<'a> Ranks<'a> {
    fn of(place: &'a Place, count: usize) -> Self {
        Self { place, count, launcher: &TORCHRUN, settings: &[] }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        stand_in().serve(&[], &mut command);
        command
            .env("SAE_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubins"))
            .env("STAND_IN_NCCL_FOLDER", self.place.folder.path())
            .env("STAND_IN_CARD", ["Stand-in=9.0"; 4].join(";"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in self.settings {
            command.env(format!("STAND_IN_{name}"), value);
        }
        command
    }

    fn rank(&self, rank: usize, args: &[&str]) -> Child {
        self.rank_in(self.place.folder.path(), rank, args)
    }

    fn rank_in(&self, folder: &Path, rank: usize, args: &[&str]) -> Child {
        let mut command = self.command(SAE);
        command.current_dir(folder);
        if self.count > 1 {
            let values = [rank, self.count, rank].map(|value| value.to_string());
            command.envs(self.launcher.iter().zip(values));
        }
        command.args(args).spawn().unwrap()
    }

    fn start(&self, args: &[&str]) -> Vec<Child> {
        (0..self.count).map(|rank| self.rank(rank, args)).collect()
    }

    fn run(&self, args: &[&str]) -> Vec<Output> {
        ended(self.start(args))
    }

    /// Trains into the folder `out`.
    fn train(&self, out: &str, more: &[&str]) -> Vec<Output> {
        let (data, out) = (self.place.name("data.h5"), self.place.name(out));
        self.run(&[&["train", &data, "--out", &out], &SIZES[..], more].concat())
    }

    /// The run of processes that all end well, of which the first one prints alone.
    fn trained(&self, out: &str, more: &[&str]) -> PathBuf {
        self.well(&self.train(out, more));
        self.place.path(out)
    }

    fn resumed(&self, run: &Path) {
        self.well(&self.run(&["train", "--resume", run.to_str().unwrap()]));
    }

    fn well(&self, all: &[Output]) {
        for (rank, output) in all.iter().enumerate() {
            let text = text(output);
            assert!(output.status.success() && !text.contains("STAND-IN:"), "rank {rank}: {text}");
            assert_eq!(rank > 0, text.is_empty(), "rank {rank}: {text}");
        }
        assert!(text(&all[0]).contains("run folder: "));
        // The file by which ranks find the first one is gone, and so is that of a start.
        let names =
            std::fs::read_dir(self.place.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn ended(all: Vec<Child>) -> Vec<Output> {
    let ends = |child: Child| std::thread::spawn(move || child.wait_with_output().unwrap());
    let ends: Vec<_> = all.into_iter().map(ends).collect();
    ends.into_iter().map(|end| end.join().unwrap()).collect()
}

/// The losses of `metrics.csv`.
fn losses(run: &Path) -> Vec<f64> {
    let mut reader = csv::Reader::from_path(run.join("metrics.csv")).unwrap();
    let at = reader.headers().unwrap().iter().position(|name| name == "train_loss").unwrap();
    reader.records().map(|record| record.unwrap()[at].parse().unwrap()).collect()
}

fn same_losses(run: &Path, alone: &Path) {
    let (got, want) = (losses(run), losses(alone));
    assert!(got.len() == want.len() && want.len() == 4, "{got:?} {want:?}");
    for (got, want) in got.iter().zip(&want) {
        assert!((got / want - 1.0).abs() < 1e-5, "{got} {want}");
    }
}

#[test]
fn a_run_of_several_processes_is_that_of_one() {
    if !compiler::nvrtc() {
        return;
    }
    // Rows that make the last batch of an epoch another size than those before it do not exist: an epoch goes on in the next.
    let place = Place::with_data(61, 16);
    let one = Ranks::of(&place, 1);
    let alone = one.trained("alone", &["--device=cuda"]);
    for (count, launcher, settings) in
        [(2, &TORCHRUN, &[][..]), (3, &SRUN, &[("NCCL_DELAY", "3")]), (4, &MPIRUN, &[("SEED", "5")])]
    {
        let ranks = Ranks { count, launcher, settings, ..one };
        let run = ranks.trained(&format!("run{count}"), &[]);
        same_losses(&run, &alone);
        let again =
            Ranks { settings: &[("NCCL_DELAY", "8")], ..ranks }.trained(&format!("again{count}"), &[]);
        same_run(&run, &again);
        // One file, as one process writes it: whatever reads a model reads this one.
        let shapes = |run: &Path| {
            let bytes = std::fs::read(run.join("model.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<_> =
                file.tensors().iter().map(|(n, v)| (n.clone(), v.shape().to_vec())).collect();
            all.sort();
            all
        };
        assert_eq!(shapes(&run), shapes(&alone));
        let figures = |run: &Path| {
            let (run, data) = (run.to_str().unwrap().to_owned(), place.name("data.h5"));
            let json: serde_json::Value =
                serde_json::from_str(&runs::sae_ok(["eval", &run, &data, "--json"])).unwrap();
            json[1]["fvu"].as_f64().unwrap()
        };
        assert!((figures(&run) / figures(&alone) - 1.0).abs() < 1e-3);
    }
}

#[test]
fn every_kind_of_model_trains_in_several_processes() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let kinds: [(&[&str], f64); 6] = [
        (&["--preset=relaxed-topk", "--anneal-steps=12", "--tied"], 1e-4),
        (&["--preset=topk", "--aux-k=8", "--memory=3k"], 1e-4),
        (&["--activation=batch-topk", "--prefixes=140,300", "--clip-norm=0.5", "--early-stop=1"], 1e-4),
        (&["--activation=jumprelu", "--ema=0.9"], 1e-4),
        (&["--activation=relu", "--preset=sparse-l1", "--pre-bias=median"], 1e-4),
        // Scores that are rounded to eight bits are ties that sums in another order decide.
        (&["--precision=bf16", "--relaxation=lapsum", "--pool=20", "--anneal-steps=12"], 1e-2),
    ];
    for (i, (kind, tolerance)) in kinds.iter().enumerate() {
        let alone =
            Ranks::of(&place, 1).trained(&format!("alone{i}"), &[kind, &["--device=cuda"][..]].concat());
        let run = Ranks::of(&place, 3).trained(&format!("run{i}"), kind);
        let (got, want) = (losses(&run), losses(&alone));
        assert_eq!(got.len(), want.len(), "{kind:?}");
        for (got, want) in got.iter().zip(&want) {
            assert!((got / want - 1.0).abs() < *tolerance, "{kind:?}: {got} {want}");
        }
    }
}

#[test]
fn rows_in_files_that_processes_bring_each_other_give_the_bits_of_rows_that_each_has() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let counts = place.name("counts");
    // No room for the rows beside the 8 MiB of cuBLAS and buffers of some thousand rows.
    let little = [
        ("MEMORY", "9500000"),
        ("CARD", "Stand-in=8.6;Stand-in=8.6;Stand-in=8.6"),
        ("COUNTS", counts.as_str()),
        ("SEED", "5"),
    ];
    // 3,840 bytes, in windows of 750.
    let kinds: [&[&str]; 2] = [
        &["--memory=1500"],
        &["--memory=1500", "--preset=topk", "--aux-k=8", "--early-stop=9", "--clip-norm=0.5"],
    ];
    for (i, kind) in kinds.iter().enumerate() {
        let each = Ranks::of(&place, 3);
        let whole = each.trained(&format!("whole{i}"), kind);
        let ranks = Ranks { settings: &little, ..each };
        let run = ranks.trained(&format!("run{i}"), kind);
        same_run(&whole, &run);
        let counted = std::fs::read_to_string(&counts).unwrap();
        let sent = counted.lines().find_map(|line| line.strip_prefix("bytes sent beside kernels\t")).unwrap();
        assert!(sent.parse::<u64>().unwrap() >= 24 * 16 * 64, "the rows were on the card: {counted}");
        // As if it had been stopped after the first checkpoint.
        for path in checkpoints(&run).split_off(1) {
            std::fs::remove_file(path).unwrap();
        }
        for name in ["summary.json", "model.safetensors", "checkpoints/best.safetensors"] {
            let _ = std::fs::remove_file(run.join(name));
        }
        ranks.resumed(&run);
        same_run(&whole, &run);
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let one = Ranks::of(&place, 1);
    let alone = one.trained("alone", &["--device=cuda"]);
    let mut before = one;
    for (name, count, next) in [("a", 2, 3), ("b", 4, 1), ("c", 1, 2)] {
        let ranks = Ranks { count, ..one };
        let more: &[&str] = if count == 1 { &["--device=cuda"] } else { &[] };
        let run = ranks.trained(name, more);
        // As if it had been stopped after the second checkpoint.
        for path in checkpoints(&run).split_off(2) {
            std::fs::remove_file(path).unwrap();
        }
        std::fs::remove_file(run.join("summary.json")).unwrap();
        std::fs::remove_file(run.join("model.safetensors")).unwrap();
        let _ = std::fs::remove_file(run.join("checkpoints/best.safetensors"));
        before = Ranks { count: next, ..before };
        if next == 1 {
            let output = before.run(&["train", "--resume", run.to_str().unwrap(), "--device=cuda"]);
            assert!(output[0].status.success(), "{}", text(&output[0]));
            assert!(text(&output[0]).contains("expect other bits"), "{}", text(&output[0]));
        } else {
            let all = before.run(&["train", "--resume", run.to_str().unwrap()]);
            assert!(all.iter().all(|output| output.status.success()), "{}", text(&all[0]));
            assert!(text(&all[0]).contains("expect other bits") && text(&all[1]).is_empty());
        }
        same_losses(&run, &alone);
        assert!(run.join("model.safetensors").is_file());
    }
}

#[test]
fn a_process_that_is_killed_ends_all_within_a_minute_and_the_run_goes_on_to_the_same_bits() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let ranks = Ranks::of(&place, 3);
    let whole = ranks.trained("whole", &[]);
    for (which, at) in [(1, 150), (0, 190)] {
        let out = format!("killed{which}");
        let kill = [("NCCL_KILL", format!("{which}:{at}"))];
        let kill: Vec<(&str, &str)> = kill.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (data, folder) = (place.name("data.h5"), place.name(&out));
        let args = [&["train", &data, "--out", &folder], &SIZES[..]].concat();
        let mut all = Ranks { settings: &kill, ..ranks }.start(&args);
        let killed = all[which].wait().unwrap();
        let since = Instant::now();
        assert_eq!(killed.code(), None, "killed by a signal");
        let all = ended(all);
        assert!(since.elapsed() < Duration::from_secs(60));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let line = format!("error: rank {which} on {}: ", host.trim());
        for (rank, output) in all.iter().enumerate().filter(|(rank, _)| *rank != which) {
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "rank {rank}: {told}");
            let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("error: ")).collect();
            // The first one says it for all, unless it is what was killed.
            assert_eq!(errors.len(), usize::from(rank == 0 || which == 0), "rank {rank}: {told}");
            assert!(
                errors.iter().all(|error| error.starts_with(&line) && error.contains("--resume")),
                "{told}"
            );
        }
        let run = place.path(&out);
        let kept = checkpoints(&run).len();
        assert!((1..4).contains(&kept), "{kept} checkpoints");
        ranks.resumed(&run);
        same_run(&whole, &run);
    }
}

#[test]
fn what_one_process_is_told_or_finds_wrong_all_heed() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let ranks = Ranks::of(&place, 2);
    let whole = ranks.trained(
        "whole",
        &["--steps=200", "--eval-every=50", "--checkpoint-every=50", "--keep-checkpoints=2"],
    );
    // A signal to one of them stops both, with a checkpoint.
    let (data, out) = (place.name("data.h5"), place.name("stopped"));
    let args = [&["train", &data, "--out", &out], &SIZES[..]].concat();
    let args =
        [&args[..], &["--steps=200", "--eval-every=50", "--checkpoint-every=50", "--keep-checkpoints=2"]]
            .concat();
    let all = ranks.start(&args);
    let run = place.path("stopped");
    let deadline = Instant::now() + Duration::from_secs(300);
    while !run.join("metrics.csv").is_file() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: a signal to a process that this test has started and not yet waited for.
    unsafe { libc::kill(all[1].id() as i32, libc::SIGTERM) };
    let all = ended(all);
    for output in &all {
        assert_eq!(output.status.code(), Some(130), "{}", text(output));
    }
    assert!(text(&all[0]).contains("interrupted at step") && text(&all[1]).is_empty(), "{}", text(&all[0]));
    ranks.resumed(&run);
    same_run(&whole, &run);

    // One comes late, from a folder whose file of that name holds another value.
    let ids: Vec<String> = (0..60).map(|n| format!("id{n:04}")).collect();
    let mut values = runs::low_rank(60, 16);
    values[7] += 0.5;
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    runs::write_values(&place.path("elsewhere/data.h5"), &ids, &values);
    let out = place.name("mixed");
    let args = [&["train", "data.h5", "--out", &out], &SIZES[..]].concat();
    let folders = [place.folder.path().to_owned(), place.path("elsewhere")];
    let mut all = vec![];
    for (rank, folder) in folders.iter().enumerate() {
        all.push(ranks.rank_in(folder, rank, &args));
        std::thread::sleep(Duration::from_millis(700));
    }
    let all = ended(all);
    assert!(all.iter().all(|output| output.status.code() == Some(1)));
    assert!(
        text(&all[0]).contains("rank 1 has other options, rows, or figures") && !place.path("mixed").exists()
    );
}

#[test]
fn a_checkpoint_that_is_damaged_for_one_process_is_skipped_by_all() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let ranks = Ranks::of(&place, 2);
    let whole = ranks.trained("whole", &[]);
    let run = ranks.trained("damaged", &[]);
    for name in ["summary.json", "model.safetensors", "checkpoints/best.safetensors"] {
        std::fs::remove_file(run.join(name)).unwrap();
    }
    // The last bytes of the file are of the last latents.
    let newest = checkpoints(&run).pop().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let all = ranks.run(&["train", "--resume", run.to_str().unwrap()]);
    assert!(all.iter().all(|output| output.status.success()), "{}", text(&all[0]));
    let told = text(&all[0]);
    assert!(
        told.contains("does not match its checksum") && told.contains("continuing from step 18"),
        "{told}"
    );
    assert!(text(&all[1]).is_empty(), "{}", text(&all[1]));
    same_run(&whole, &run);
}

#[test]
fn what_cannot_be_shared_out_is_refused_by_name() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    for (count, more, wanted) in [
        (2, &["--device=cpu"][..], "--device cpu: several processes train one model on GPUs alone"),
        (
            2,
            &["--device=cuda:1"],
            "--device cuda:1: each of several processes takes the GPU of its own number",
        ),
        (2, &["--latents=100"], "at most 1 rank"),
        (2, &["--k=9999"], "k"),
    ] {
        let all = Ranks::of(&place, count).train("refused", more);
        for output in &all {
            assert!(!output.status.success());
        }
        let told = text(&all[0]);
        assert!(told.contains(wanted) && !place.path("refused").exists(), "{more:?}: {told}");
    }
    let (data, out) = (place.name("data.h5"), place.name("sweep"));
    let all = Ranks::of(&place, 2).run(&["sweep", &data, "--k=2,3", "--out", &out]);
    assert!(text(&all[0]).contains("a sweep is one process with one GPU, and torchrun started 2"));
    assert!(!place.path("sweep").exists());
}

#[test]
fn mpirun_starts_a_run() {
    if !compiler::nvrtc() {
        return;
    }
    if Command::new("mpirun").arg("--version").output().is_err() {
        let required = std::env::var("SAE_REQUIRE_MPIRUN").is_ok_and(|v| v == "1");
        assert!(!required, "SAE_REQUIRE_MPIRUN=1: there is no mpirun");
        eprintln!("skipped: there is no mpirun");
        return;
    }
    let place = Place::with_data(60, 16);
    let alone = Ranks::of(&place, 1).trained("alone", &["--device=cuda"]);
    for count in ["2", "4"] {
        let (data, out) = (place.name("data.h5"), place.name(&format!("run{count}")));
        let mpirun = |args: &[&str], settings: &[(&str, &str)]| {
            let ranks = Ranks { settings, ..Ranks::of(&place, 1) };
            let mut command = ranks.command("mpirun");
            command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", count, SAE]);
            command.args(args).output().unwrap()
        };
        let args = [&["train", &data, "--out", &out], &SIZES[..]].concat();
        // The last rank dies first, then the run goes on.
        let last = count.parse::<usize>().unwrap() - 1;
        let killed = mpirun(&args, &[("NCCL_KILL", &format!("{last}:150"))]);
        let told = text(&killed);
        // mpirun names the rank itself, and may then let nothing of the others through.
        let named = [format!("error: rank {last} on "), format!("process rank {last} ")];
        assert!(!killed.status.success() && named.iter().any(|name| told.contains(name)), "{told}");
        let resumed = mpirun(&["train", "--resume", &out], &[]);
        assert!(
            resumed.status.success() && text(&resumed).matches("run folder: ").count() == 1,
            "{}",
            text(&resumed)
        );
        same_losses(&place.path(&format!("run{count}")), &alone);
    }
}
