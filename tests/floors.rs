//! Modules stand on floors and use only modules on a lower floor; unsafe code stays where it is allowed.

use std::fs;
use std::path::{Path, PathBuf};

/// Every module at the top of `src`, lowest floor first.
const FLOORS: [&[&str]; 7] = [
    &["sys", "options"],
    &["memory", "bus", "irq", "notice", "console", "disk", "net", "snapshot", "agent"],
    &["devices", "arch", "image"],
    &["kvm", "config"],
    &["vmm"],
    &["api"],
    &["cli"],
];

/// Modules of floor 1 that others of floor 1 stand on.
const GROUND: [&str; 3] = ["memory", "irq", "notice"];

/// What unit tests of all floors share; it is in no program.
const TESTING: &str = "testing";

/// The only modules with unsafe code.
const UNSAFE: [&str; 3] = ["sys", "memory", "kvm"];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Each source file below `src` with the module at the top that it belongs to.
fn files() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    found
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).unwrap().to_path_buf();
            let top = relative.iter().next().unwrap().to_string_lossy();
            let text = fs::read_to_string(&path).unwrap();
            (top.trim_end_matches(".rs").to_string(), relative, text)
        })
        .filter(|(top, ..)| !["lib", "main", "bin", TESTING].contains(&top.as_str()))
        .collect()
}

fn floor(module: &str) -> usize {
    FLOORS
        .iter()
        .position(|floor| floor.contains(&module))
        .unwrap_or_else(|| panic!("module `{module}` stands on no floor: add it to FLOORS"))
}

/// What a line of code uses from the crate's top: `use crate::{a, b::c}` and `crate::a::b` alike.
fn used(line: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (_, rest) in line.match_indices("crate::").map(|(at, name)| (at, &line[at + name.len()..])) {
        match rest.strip_prefix('{') {
            Some(list) => found.extend(list.split(',').map(|item| word(item.trim()))),
            None => found.push(word(rest)),
        }
    }
    found.retain(|name| !["", "self", TESTING].contains(&name.as_str()));
    found
}

#[test]
fn modules_look_down() {
    let mut wrong = Vec::new();
    for (module, path, text) in files() {
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for other in used(line) {
                let down = other == module
                    || floor(&other) < floor(&module)
                    || floor(&module) == 1 && GROUND.contains(&other.as_str());
                if !down {
                    wrong.push(format!("src/{}:{}: {module} uses {other}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "modules that look up:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stays_low() {
    let mut wrong = Vec::new();
    for (module, path, text) in files() {
        let code = |line: &&str| !line.trim_start().starts_with("//");
        let is_unsafe = |line: &str| {
            line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn")
        };
        if !UNSAFE.contains(&module.as_str()) && text.lines().filter(code).any(is_unsafe) {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "unsafe code outside of {UNSAFE:?}: {wrong:?}");
}

/// The program that runs machines carries no HTTP client and no TLS, as long as only rvmm-registry reaches them.
#[test]
fn registries_have_one_door() {
    let doors = [
        ("src/image/registry/", "ureq::"),
        ("src/image/registry/", "rustls::"),
        ("src/cli/registry/program/", "image::registry"),
    ];
    let mut wrong = Vec::new();
    for (_, path, text) in files() {
        let place = format!("src/{}", path.display());
        for (door, word) in
            doors.iter().filter(|(door, word)| !place.starts_with(door) && text.contains(word))
        {
            wrong.push(format!("{place} uses {word}, which only {door} may use"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_every_form() {
    assert_eq!(used("use crate::bus::Bus;"), ["bus"]);
    assert_eq!(used("use crate::{bus, console as host};"), ["bus", "console"]);
    assert_eq!(used("fn f(x: crate::vmm::Vmm) -> crate::kvm::Vm"), ["vmm", "kvm"]);
}
