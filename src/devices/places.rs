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

/// `file` or `file.VERSION` in `folder`; the unversioned name if both are there.
pub(crate) fn file_in(folder: &Path, file: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let rest = name.strip_prefix(file);
            rest.is_some_and(|r| r.is_empty() || r.starts_with('.'))
        })
        .collect();
    names.sort();
    names.first().map(|name| folder.join(name))
}

/// The folders where CUDA's libraries may lie, given the environment; each once, in order of precedence.
pub(crate) fn places(variable: &dyn Fn(&str) -> Option<String>) -> Vec<Place> {
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
    for cuda in children(Path::new("/usr/local"), |name| name.starts_with("cuda")) {
        add("/usr/local/cuda*", cuda.join("lib64"));
    }
    for folder in loader_folders() {
        add("system loader", folder);
    }
    for (reason, prefix) in python_prefixes(variable) {
        for folder in python_library_folders(&prefix) {
            add(&reason, folder);
        }
    }
    found
}

/// Where the system loader looks, as far as files tell: its configuration, its defaults, and the places
/// where containers and WSL mount the driver.
fn loader_folders() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/ld.so.conf")];
    files.extend(children(Path::new("/etc/ld.so.conf.d"), |name| name.ends_with(".conf")));
    let mut folders = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().map(str::trim);
        folders.extend(lines.filter(|l| l.starts_with('/')).map(PathBuf::from));
    }
    let arch = std::env::consts::ARCH;
    folders.extend([
        format!("/usr/lib/{arch}-linux-gnu").into(),
        "/usr/lib64".into(),
        "/usr/lib".into(),
        "/usr/local/nvidia/lib64".into(),
        "/usr/lib/wsl/lib".into(),
    ]);
    folders
}

/// Python environments: the active ones, and those whose `python3` is on the PATH.
fn python_prefixes(variable: &dyn Fn(&str) -> Option<String>) -> Vec<(String, PathBuf)> {
    let mut prefixes: Vec<(String, PathBuf)> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), variable(name).filter(|v| !v.is_empty())?.into())))
        .collect();
    for bin in variable("PATH").iter().flat_map(std::env::split_paths) {
        // The link is not followed: a virtual environment's python3 points out of it.
        if bin.join("python3").exists()
            && let Some(prefix) = bin.parent()
        {
            prefixes.push(("python3 on PATH".to_owned(), prefix.to_owned()));
        }
    }
    prefixes
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
