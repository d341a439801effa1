//! A disk in memory that fails on request, and that loses unsynced data.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::super::disk::{Access, Disk, DiskFile};
use crate::local_file::Identity;

/// Effect of a planned failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The operation does nothing and returns the error.
    Error(io::ErrorKind),
    /// A write does half of its work, and the next operation is rejected. Any other operation is
    /// rejected at once.
    Short,
}

/// The operations that fail.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    /// Index of the first failing operation, counted from 0.
    pub(super) at: Option<u64>,
    /// Number of failing operations from there on.
    pub(super) count: u64,
    pub(super) fault: Option<Fault>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                if content.len() < offset + bytes.len() {
                    content.resize(offset + bytes.len(), 0);
                }
                content[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Self::SetLen(len) => content.resize(*len, 0),
        }
    }
}

#[derive(Clone, Default)]
struct Node {
    now: Vec<u8>,
    on_disk: Vec<u8>,
    unsynced: Vec<Change>,
    /// The opening that holds the lock.
    locked_by: Option<u64>,
}

#[derive(Clone)]
enum Naming {
    Is(PathBuf, usize),
    Gone(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, node: usize },
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Is(path, node) => drop(names.insert(path.clone(), *node)),
            Self::Gone(path) => drop(names.remove(path)),
            Self::Renamed { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

#[derive(Default)]
struct State {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    names_on_disk: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<Naming>,
    operations: u64,
    plan: Plan,
    creates_nothing: bool,
    shortens: bool,
    skipped: Option<&'static str>,
    log: Vec<String>,
    openings: u64,
}

impl State {
    /// Counts an operation. Returns its fault.
    fn step(&mut self, what: &str, path: &str) -> Option<Fault> {
        if self.skipped == Some(what) {
            return None;
        }
        let number = self.operations;
        self.operations += 1;
        let fails = self.plan.at.is_some_and(|at| number >= at && number - at < self.plan.count);
        self.log.push(format!("{what} {path}{}", if fails { " FAILS" } else { "" }));
        if fails { self.plan.fault } else { None }
    }

    fn reject(&mut self, what: &str, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self.step(what, &name) {
            None => Ok(()),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Short) => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.unsynced_names.push(naming);
    }
}

/// Points at which threads wait: at the sync of a file.
#[derive(Default)]
struct Gates {
    closed: BTreeSet<PathBuf>,
    reached: BTreeSet<PathBuf>,
}

/// Callback before each operation of a compaction.
type Pace = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone, Default)]
pub(super) struct SimDisk(
    Arc<Mutex<State>>,
    Arc<(Mutex<Gates>, Condvar)>,
    Arc<Mutex<Option<Pace>>>,
);

impl SimDisk {
    pub(super) fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Makes operations fail, counted from now.
    pub(super) fn plan(&self, plan: Plan) {
        self.with(|state| {
            state.plan = plan;
            state.operations = 0;
            state.log.clear();
        });
    }

    pub(super) fn operations(&self) -> u64 {
        self.with(|state| state.operations)
    }

    /// Makes the next write do half of its work, in addition to the plan.
    pub(super) fn shorten_next_write(&self) {
        self.with(|state| state.shortens = true);
    }

    /// Blocks the next thread that syncs this file, or locks it if the path ends in `.lock`.
    pub(super) fn close_gate(&self, path: &str) {
        let mut gates = self.1.0.lock().unwrap();
        gates.reached.remove(Path::new(path));
        gates.closed.insert(path.into());
    }

    /// Returns when a thread waits at the gate.
    pub(super) fn wait_for_gate(&self, path: &str) {
        let gates = self.1.0.lock().unwrap();
        let is_free = |gates: &mut Gates| !gates.reached.contains(Path::new(path));
        let (_gates, timeout) =
            self.1.1.wait_timeout_while(gates, Duration::from_secs(60), is_free).unwrap();
        assert!(!timeout.timed_out(), "nobody comes to the gate at {path}");
    }

    pub(super) fn open_gate(&self, path: &str) {
        self.1.0.lock().unwrap().closed.remove(Path::new(path));
        self.1.1.notify_all();
    }

    /// Installs a callback before each read and write of a compaction.
    pub(super) fn slow_compaction(&self, pace: impl Fn() + Send + Sync + 'static) {
        *self.2.lock().unwrap() = Some(Arc::new(pace));
    }

    fn pace(&self) {
        let pace = self.2.lock().unwrap().clone();
        if let Some(pace) = pace
            && std::thread::current().name() == Some("snapshot-compact")
        {
            pace();
        }
    }

    fn pass_gate(&self, path: &Path) {
        let mut gates = self.1.0.lock().unwrap();
        if gates.closed.contains(path) && gates.reached.insert(path.to_owned()) {
            self.1.1.notify_all();
            drop(self.1.1.wait_while(gates, |gates| gates.closed.contains(path)).unwrap());
        }
    }

    /// Makes operations of this kind neither count nor fail.
    pub(super) fn skip(&self, what: &'static str) {
        self.with(|state| state.skipped = Some(what));
    }

    /// Returns the operations since the plan was made.
    pub(super) fn log(&self) -> Vec<String> {
        self.with(|state| state.log.clone())
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.with(|state| state.names.keys().cloned().collect())
    }

    pub(super) fn content(&self, path: &Path) -> Vec<u8> {
        self.with(|state| state.nodes[state.names[path]].now.clone())
    }

    /// Puts a file on the disk.
    pub(super) fn put(&self, path: &Path, content: &[u8]) {
        self.with(|state| {
            let node = state.nodes.len();
            state.nodes.push(Node {
                now: content.to_vec(),
                on_disk: content.to_vec(),
                ..Node::default()
            });
            state.names.insert(path.to_owned(), node);
            state.names_on_disk.insert(path.to_owned(), node);
        });
    }

    fn of(nodes: Vec<Node>, names: BTreeMap<PathBuf, usize>) -> Self {
        let state = State { nodes, names_on_disk: names.clone(), names, ..State::default() };
        Self(Arc::new(Mutex::new(state)), Arc::default(), Arc::default())
    }

    /// Returns the disk without any unsynced data.
    pub(super) fn with_only_what_is_synced(&self) -> Self {
        self.with(|state| {
            let names = state.names_on_disk.clone();
            let synced = |node: &Node| Node {
                now: node.on_disk.clone(),
                on_disk: node.on_disk.clone(),
                ..Node::default()
            };
            Self::of(state.nodes.iter().map(synced).collect(), names)
        })
    }

    /// Sets whether the disk rejects new files.
    pub(super) fn reject_new_files(&self, reject: bool) {
        self.with(|state| state.creates_nothing = reject);
    }

    /// Returns the disk after a power loss, with any part of the unsynced data.
    pub(super) fn after_power_loss(&self, random: &mut fastrand::Rng) -> Self {
        self.with(|state| {
            let mut names = state.names_on_disk.clone();
            for naming in &state.unsynced_names {
                if random.bool() {
                    naming.apply(&mut names);
                }
            }
            let nodes = state.nodes.iter().map(|node| survived(node, random)).collect();
            Self::of(nodes, names)
        })
    }
}

fn survived(node: &Node, random: &mut fastrand::Rng) -> Node {
    let mut content = node.on_disk.clone();
    // Keeps nothing, everything, or decides for each change.
    let mood = random.u8(0..4);
    for change in &node.unsynced {
        match (mood, change) {
            (0, _) => {}
            (1, _) => change.apply(&mut content),
            (_, Change::SetLen(_)) => {
                if random.bool() {
                    change.apply(&mut content);
                }
            }
            (_, Change::Write { offset, bytes }) => match random.u8(0..4) {
                0 => {}
                1 => change.apply(&mut content),
                // Keeps only the length.
                2 => content.resize(content.len().max(offset + bytes.len()), 0),
                // Keeps some blocks of a torn write.
                _ => {
                    content.resize(content.len().max(offset + bytes.len()), 0);
                    let block = 1 << random.u8(0..8);
                    for (index, piece) in bytes.chunks(block).enumerate() {
                        if random.bool() {
                            let at = offset + index * block;
                            content[at..at + piece.len()].copy_from_slice(piece);
                        }
                    }
                }
            },
        }
    }
    Node { now: content.clone(), on_disk: content, ..Node::default() }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let (node, opening) = self.with(|state| {
            state.reject("open", path)?;
            state.openings += 1;
            let node = match (access, state.names.get(path)) {
                (Access::Create, _) if state.creates_nothing => {
                    Err(io::ErrorKind::StorageFull.into())
                }
                (Access::Create, Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
                (Access::Create, None) => {
                    let node = state.nodes.len();
                    state.nodes.push(Node::default());
                    state.name(Naming::Is(path.to_owned(), node));
                    Ok(node)
                }
                (_, Some(node)) => Ok(*node),
                (_, None) => Err(io::Error::from(io::ErrorKind::NotFound)),
            };
            node.map(|node| (node, state.openings))
        })?;
        Ok(Arc::new(SimFile { disk: self.clone(), node, path: path.to_owned(), opening }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|state| {
            state.reject("rename", to)?;
            let node = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            state.name(Naming::Renamed { from: from.to_owned(), to: to.to_owned(), node });
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            state.reject("remove", path)?;
            if !state.names.contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            state.name(Naming::Gone(path.to_owned()));
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            state.reject("sync the directory of", path)?;
            state.names_on_disk = state.names.clone();
            state.unsynced_names.clear();
            Ok(())
        })
    }
}

struct SimFile {
    disk: SimDisk,
    node: usize,
    path: PathBuf,
    opening: u64,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.with(|state| {
            state.nodes[self.node].locked_by.take_if(|opening| *opening == self.opening);
        });
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.with(|state| {
            state.reject("len", &self.path)?;
            Ok(state.nodes[self.node].now.len() as u64)
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.pace();
        self.disk.with(|state| {
            state.reject("read", &self.path)?;
            let content = &state.nodes[self.node].now;
            let rest = content.get(offset as usize..).unwrap_or_default();
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.pace();
        self.disk.with(|state| {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let len = match state.step("write", &name) {
                None if std::mem::take(&mut state.shortens) => bytes.len() / 2,
                None => bytes.len(),
                Some(Fault::Error(kind)) => return Err(kind.into()),
                Some(Fault::Short) if bytes.len() < 2 => {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Some(Fault::Short) => bytes.len() / 2,
            };
            let change = Change::Write { offset: offset as usize, bytes: bytes[..len].to_vec() };
            let node = &mut state.nodes[self.node];
            change.apply(&mut node.now);
            node.unsynced.push(change);
            Ok(len)
        })
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.disk.pass_gate(&self.path.with_added_extension("lock"));
        self.disk.with(|state| {
            state.reject("lock", &self.path)?;
            Ok(*state.nodes[self.node].locked_by.get_or_insert(self.opening) == self.opening)
        })
    }

    fn identity(&self, path: &Path) -> Identity {
        self.disk.with(|state| match state.names.get(path) {
            Some(node) if *node == self.node => Identity::Kept,
            Some(_) => Identity::Replaced,
            None => Identity::Removed,
        })
    }

    fn look(&self, path: &Path) -> io::Result<(u64, Identity)> {
        Ok((self.len()?, self.identity(path)))
    }

    fn copy_access(&self, _from: &Path) -> io::Result<()> {
        self.disk.with(|state| state.reject("copy access to", &self.path))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.with(|state| {
            state.reject("cut", &self.path)?;
            let change = Change::SetLen(len as usize);
            let node = &mut state.nodes[self.node];
            change.apply(&mut node.now);
            node.unsynced.push(change);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.pass_gate(&self.path);
        self.disk.with(|state| {
            let result = state.reject("sync", &self.path);
            let node = &mut state.nodes[self.node];
            let unsynced = std::mem::take(&mut node.unsynced);
            // After a failed sync the system considers the unwritten data clean, as ext4 and XFS
            // do. A read returns it, and no later sync writes it.
            if result.is_ok() {
                unsynced.iter().for_each(|change| change.apply(&mut node.on_disk));
            } else {
                let lengths =
                    unsynced.into_iter().filter(|change| matches!(change, Change::SetLen(_)));
                node.unsynced = lengths.collect();
            }
            result
        })
    }
}
