//! What the suites need from the machine, installed where allowed and named exactly where not.
//!
//! Owns: Debian packages (by apt-get, as root or through passwordless sudo), one Python
//! environment under the target folder with pinned packages, cargo tools beside it.
//! Never: touches the machine's own Python, and never asks a question.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    report::{Outcome, Problem},
    tree,
};

/// Pinned Python packages: the clients under test and the secret scanner.
const REQUIREMENTS: [&str; 2] = ["tests/e2e/clients/requirements.txt", "xtask/requirements.txt"];

/// Where Debian and its relatives put SoftHSM's PKCS#11 library.
const SOFTHSM: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// One thing that a suite cannot do without.
struct Need {
    /// What it is for.
    why: &'static str,
    /// The Debian package that brings it.
    package: &'static str,
    /// Whether it is there.
    present: fn() -> bool,
}

const NEEDS: [Need; 7] = [
    Need {
        why: "linking, and compiling aws-lc and zstd",
        package: "build-essential",
        present: || runs("cc", &["--version"]),
    },
    Need {
        why: "the key provider tests against a PKCS#11 token",
        package: "softhsm2",
        present: || {
            let named = std::env::var_os("SOFTHSM2_LIB").is_some_and(|p| Path::new(&p).exists());
            (named || SOFTHSM.iter().any(|p| Path::new(p).exists()))
                && runs("softhsm2-util", &["--version"])
        },
    },
    Need {
        why: "the client tests",
        package: "python3-venv",
        present: || runs("python3", &["-c", "import venv, ensurepip"]),
    },
    Need {
        why: "the MQTT tests against a real broker",
        package: "mosquitto",
        // It is where only root's path looks, and has no argument that only says its version.
        present: || {
            let places = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
            places.iter().any(|p| Path::new(p).exists())
        },
    },
    Need {
        why: "the Sparkplug test against a node of npm",
        package: "npm",
        present: || runs("npm", &["--version"]) && runs("node", &["--version"]),
    },
    Need {
        why: "the client tests over PostgreSQL's protocol",
        package: "postgresql-client",
        present: || runs("psql", &["--version"]),
    },
    Need {
        why: "the README's own lines",
        package: "curl",
        present: || runs("curl", &["--version"]),
    },
];

/// Whether a program starts and succeeds.
pub(crate) fn runs(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// The folder that holds this build's profiles: `target` or wherever it was moved to.
pub(crate) fn target() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let mut folder = exe.parent().unwrap_or(Path::new("target/debug")).to_path_buf();
    if folder.ends_with("deps") {
        folder.pop();
    }
    folder.pop();
    folder
}

/// Root, or able to become root without a password.
fn as_root() -> Option<Command> {
    let id = Command::new("id").arg("-u").output().ok()?;
    if String::from_utf8_lossy(&id.stdout).trim() == "0" {
        let mut command = Command::new("env");
        command.arg("DEBIAN_FRONTEND=noninteractive");
        return Some(command);
    }
    if runs("sudo", &["-n", "true"]) {
        let mut command = Command::new("sudo");
        command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive"]);
        return Some(command);
    }
    None
}

fn apt(args: &[&str]) -> bool {
    let Some(mut command) = as_root() else { return false };
    command.arg("apt-get").args(args).stdin(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Installs what is missing, or says what to install and why.
pub(crate) fn packages() -> Outcome {
    let missing = |needs: &'static [Need]| -> Vec<&'static Need> {
        needs.iter().filter(|n| !(n.present)()).collect()
    };
    let lacking = missing(&NEEDS);
    if lacking.is_empty() {
        println!("everything is there: {}", NEEDS.map(|n| n.package).join(", "));
        return Ok(());
    }
    let names: Vec<&str> = lacking.iter().map(|n| n.package).collect();
    println!("missing: {}", names.join(", "));
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&names);
    // The package lists of a fresh machine may be empty or old: ask once without, once with.
    if !apt(&install) && apt(&["update"]) {
        apt(&install);
    }
    let lacking = missing(&NEEDS);
    if lacking.is_empty() {
        return Ok(());
    }
    let mut text = String::from("these are missing and could not be installed:\n");
    for need in &lacking {
        text.push_str(&format!("  {:<16} for {}\n", need.package, need.why));
    }
    let names: Vec<&str> = lacking.iter().map(|n| n.package).collect();
    text.push_str(&format!("on Debian or Ubuntu: sudo apt-get install {}", names.join(" ")));
    Err(Problem(text))
}

/// The Python of the environment under the target folder, made or refreshed when the pinned
/// packages changed.
pub(crate) fn python() -> Result<PathBuf, Problem> {
    let home = target().join("python");
    let python = home.join("bin").join("python");
    let mut pinned = String::new();
    for file in REQUIREMENTS {
        pinned.push_str(&tree::text(file.as_ref())?.unwrap_or_default());
    }
    let stamp = home.join("millrace-requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|s| s == pinned)
        && runs(&python.to_string_lossy(), &["--version"])
    {
        return Ok(python);
    }
    println!("making a Python environment in {}", home.display());
    let must = |what: &str, command: &mut Command| -> Outcome {
        let fine = command.stdin(Stdio::null()).status()?.success();
        if fine { Ok(()) } else { Err(Problem(format!("{what} failed; its output is above"))) }
    };
    must("python3 -m venv", Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    for file in REQUIREMENTS {
        pip.arg("-r").arg(tree::root().join(file));
    }
    must("pip install", &mut pip)?;
    fs::write(&stamp, pinned)?;
    Ok(python)
}

/// The npm package that plays a Sparkplug node, of an exact version, under the target folder,
/// where its test looks for it.
pub(crate) fn npm() -> Outcome {
    const PACKAGE: &str = "sparkplug-client@3.2.4";
    let home = target().join("npm");
    let stamp = home.join("millrace-package.txt");
    if fs::read_to_string(&stamp).is_ok_and(|s| s == PACKAGE) {
        return Ok(());
    }
    println!("installing {PACKAGE} into {}", home.display());
    fs::create_dir_all(&home)?;
    let mut npm = Command::new("npm");
    // No scripts of packages are run.
    npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--prefix"]);
    let status = npm.arg(&home).arg(PACKAGE).stdin(Stdio::null()).status()?;
    if !status.success() {
        return Err(Problem(format!("npm install {PACKAGE} failed")));
    }
    fs::write(&stamp, PACKAGE)?;
    Ok(())
}

/// A cargo tool of an exact version: from the tools folder, else from the path, else installed.
/// Built without optimisation, because it runs for seconds and compiles for minutes.
pub(crate) fn cargo_tool(name: &str, version: &str) -> Result<PathBuf, Problem> {
    let tools = target().with_file_name("tools");
    let own = tools.join("bin").join(name);
    let speaks = |program: &Path| {
        Command::new(program).arg("--version").output().is_ok_and(|o| {
            String::from_utf8_lossy(&o.stdout).split_whitespace().any(|w| w == version)
        })
    };
    if speaks(&own) {
        return Ok(own);
    }
    if speaks(Path::new(name)) {
        return Ok(PathBuf::from(name));
    }
    println!("installing {name} {version} into {} (some minutes, once)", tools.display());
    let status = Command::new("cargo")
        .args(["install", "--locked", "--debug", "--quiet", "--version", version, "--root"])
        .arg(&tools)
        .arg(name)
        // Its own folder: a tool's build must neither wait for ours nor fill our cache.
        .env("CARGO_TARGET_DIR", tools.join("build"))
        .stdin(Stdio::null())
        .status()?;
    if !status.success() || !speaks(&own) {
        return Err(Problem(format!("cargo install --locked {name}@{version} failed")));
    }
    drop(fs::remove_dir_all(tools.join("build")));
    Ok(own)
}
