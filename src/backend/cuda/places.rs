//! The folders where CUDA's libraries may lie, and why each is one.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// A folder, and why it was looked into.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Place {
    /// The setting or convention that led there, as in `CUDA_HOME`.
    pub reason: String,
    /// The folder; it need not exist.
    pub folder: PathBuf,
}

/// `file` and `file.VERSION` in `folder`, the unversioned name first; one name of those that lead to the same file.
pub(crate) fn files_in(folder: &Path, file: &str) -> Vec<PathBuf> {
    let named = children(folder, |name| {
        let rest = name.strip_prefix(file);
        rest.is_some_and(|r| r.is_empty() || r.starts_with('.'))
    });
    let mut real = Vec::new();
    named
        .into_iter()
        .filter(|path| {
            let target = path.canonicalize().unwrap_or_else(|_| path.clone());
            let new = !real.contains(&target);
            real.push(target);
            new
        })
        .collect()
}

/// [`places`] on this machine.
pub(crate) fn here() -> Vec<Place> {
    places(&|name| std::env::var(name).ok(), Path::new("/"))
}

/// The folders where CUDA's libraries may lie, given the environment and the root of the file system; each once, in
/// order of precedence.
pub(crate) fn places(variable: &dyn Fn(&str) -> Option<String>, root: &Path) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut add = |reason: &str, folder: PathBuf| {
        // /lib is often a link to /usr/lib: the same folder under two names is listed once.
        let real = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        if !seen.contains(&real) {
            seen.push(real);
            let reason = reason.to_owned();
            found.push(Place { reason, folder });
        }
    };
    let split = |paths: String| std::env::split_paths(&paths).collect::<Vec<_>>();
    for folder in variable("LD_LIBRARY_PATH").map(split).unwrap_or_default() {
        if !folder.as_os_str().is_empty() {
            add("LD_LIBRARY_PATH", folder);
        }
    }
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = variable(name).filter(|v| !v.is_empty()) {
            add(name, Path::new(&home).join("lib64"));
            add(name, Path::new(&home).join("lib"));
        }
    }
    for cuda in children(&root.join("usr/local"), |name| name.starts_with("cuda")) {
        add("/usr/local/cuda*", cuda.join("lib64"));
    }
    add("/opt/cuda", root.join("opt/cuda/lib64"));
    for folder in loader_folders(root) {
        add("system loader", folder);
    }
    for (reason, prefix) in python_prefixes(variable, root) {
        for folder in python_library_folders(&prefix) {
            add(&reason, folder);
        }
        // conda's own packages of CUDA lie beside Python, not among its packages.
        if prefix.join("conda-meta").is_dir() {
            add(&reason, prefix.join("lib"));
            for target in children(&prefix.join("targets"), |_| true) {
                add(&reason, target.join("lib"));
            }
        }
    }
    found
}

/// Where the system loader looks, as far as files say: its configuration, its defaults, and the places
/// where containers and WSL mount the driver.
fn loader_folders(root: &Path) -> Vec<PathBuf> {
    let mut files = vec![root.join("etc/ld.so.conf")];
    files.extend(children(&root.join("etc/ld.so.conf.d"), |name| name.ends_with(".conf")));
    let mut folders = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().map(str::trim);
        folders.extend(lines.filter_map(|l| Some(root.join(l.strip_prefix('/')?))));
    }
    let arch = std::env::consts::ARCH;
    let usual = [
        &format!("usr/lib/{arch}-linux-gnu"),
        "usr/lib64",
        "usr/lib",
        "usr/local/nvidia/lib64",
        "usr/lib/wsl/lib",
    ];
    folders.extend(usual.map(|folder| root.join(folder)));
    folders
}

/// Python environments: the active ones, those whose `python3` is on the PATH or behind it, and where `pip` installs for
/// a user and for the system.
fn python_prefixes(variable: &dyn Fn(&str) -> Option<String>, root: &Path) -> Vec<(String, PathBuf)> {
    let given = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut prefixes: Vec<(String, PathBuf)> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), given(name)?)))
        .collect();
    for bin in variable("PATH").iter().flat_map(std::env::split_paths) {
        let python = bin.join("python3");
        if python.exists() {
            let behind = linked(&python);
            prefixes.extend(behind.into_iter().map(|prefix| ("python3 on PATH".to_owned(), prefix)));
            prefixes.extend(behind_shim(&bin).into_iter().map(|prefix| ("pyenv".to_owned(), prefix)));
        }
    }
    let user = given("PYTHONUSERBASE").or_else(|| Some(given("HOME")?.join(".local")));
    prefixes.extend(user.map(|prefix| ("pip install --user".to_owned(), prefix)));
    prefixes.extend(["usr/local", "usr"].map(|prefix| ("system's Python".to_owned(), root.join(prefix))));
    prefixes
}

/// The prefixes of a program in `PREFIX/bin` and of what it links to, one link after another: a virtual environment's
/// python3 points out of it, and a link elsewhere may point into one.
fn linked(program: &Path) -> Vec<PathBuf> {
    let mut prefixes = Vec::new();
    let mut at = program.to_owned();
    // As many as the system follows.
    for _ in 0..40 {
        prefixes.extend(at.parent().and_then(Path::parent).map(Path::to_owned));
        let (Ok(target), Some(folder)) = (at.read_link(), at.parent()) else { break };
        at = folder.join(target);
    }
    prefixes
}

/// The Pythons behind a folder of pyenv's shims, scripts that choose one: first those of the file `version`.
fn behind_shim(bin: &Path) -> Vec<PathBuf> {
    let Some(pyenv) = bin.parent().filter(|_| bin.ends_with("shims")) else { return Vec::new() };
    let chosen = std::fs::read_to_string(pyenv.join("version")).unwrap_or_default();
    let versions = pyenv.join("versions");
    let chosen = chosen.split_whitespace().map(|name| versions.join(name));
    chosen.chain(children(&versions, |_| true)).collect()
}

/// `nvidia/*/lib` in the packages of a Python environment. If there is none, the folder that would
/// hold it, so that the report shows that the environment was looked into.
fn python_library_folders(prefix: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for python in children(&prefix.join("lib"), |name| name.starts_with("python3")) {
        for packages in ["site-packages", "dist-packages"] {
            let nvidia = python.join(packages).join("nvidia");
            let libraries = children(&nvidia, |_| true).into_iter().map(|p| p.join("lib"));
            let before = folders.len();
            folders.extend(libraries.filter(|p| p.is_dir()));
            if folders.len() == before && python.join(packages).is_dir() {
                folders.push(nvidia);
            }
        }
    }
    folders
}

/// Entries of a folder by name, sorted; none if it cannot be read.
fn children(folder: &Path, keep: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(&keep))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}
