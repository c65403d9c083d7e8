//! Overlays over disks of known bytes.

use std::os::unix::fs::{FileExt, MetadataExt};

use tempfile::TempDir;

use super::*;
use crate::disk::Config;
use crate::disk::model::{Model, ask, wait};
use crate::testing::Random;

/// A whole number of blocks and three sectors.
const SIZE: usize = (2 << 20) + 3 * 512;
const ENGINES: [Option<Engine>; 2] = [Some(Engine::Sync), None];

struct Fixture {
    directory: TempDir,
    content: Vec<u8>,
    engine: Option<Engine>,
}

impl Fixture {
    fn new(engine: Option<Engine>) -> Self {
        let directory = TempDir::new().unwrap();
        let content = Random(5).bytes(SIZE);
        std::fs::write(directory.path().join("base"), &content).unwrap();
        Fixture { directory, content, engine }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn base(&self) -> Box<dyn Disk> {
        let config = Config { read_only: true, engine: self.engine, ..Config::new(self.path("base")) };
        Box::new(Raw::open(&config).unwrap())
    }

    fn create(&self, name: &str) -> Overlay {
        Overlay::create(&self.path(name), self.base(), self.engine).unwrap()
    }

    /// What its file says that it has, whoever else has it open.
    fn open_alone(&self, name: &str) -> Changes {
        let path = self.path(name);
        changes_of(&std::fs::File::open(&path).unwrap(), &path).unwrap().1
    }

    fn open(&self, name: &str) -> Overlay {
        Overlay::open(&self.path(name), self.base(), self.engine).unwrap()
    }
}

fn buffers(bytes: &[u8]) -> Buffers {
    let memory =
        crate::memory::allocate(&[(vm_memory::GuestAddress(0), 1 << 20)], Default::default()).unwrap();
    let mut buffers = Buffers::new(&Arc::new(memory));
    buffers.push(vm_memory::GuestAddress(0), bytes.len()).unwrap();
    buffers.write_at(0, bytes);
    buffers
}

fn write(disk: &mut dyn Disk, offset: u64, bytes: &[u8]) {
    ask(disk, Request::Write { offset, buffers: buffers(bytes) }).unwrap();
}

fn read(disk: &mut dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let memory =
        crate::memory::allocate(&[(vm_memory::GuestAddress(0), 1 << 20)], Default::default()).unwrap();
    crate::disk::model::read(disk, &Arc::new(memory), offset, len)
}

#[test]
fn does_what_a_vector_does() {
    for engine in ENGINES {
        for seed in 0..4 {
            let fixture = Fixture::new(engine);
            let mut model = Model::new(&fixture.content, seed);
            let mut overlay = fixture.create("top");
            for _ in 0..3 {
                model.play(&mut overlay, 150);
                ask(&mut overlay, Request::Flush).unwrap();
                model.compare(&mut overlay);
                drop(overlay);
                overlay = fixture.open("top");
                model.compare(&mut overlay);
            }
            assert_eq!(std::fs::read(fixture.path("base")).unwrap(), fixture.content, "the base changed");
        }
    }
}

#[test]
fn overlays_stand_on_overlays() {
    for engine in ENGINES {
        let fixture = Fixture::new(engine);
        let mut model = Model::new(&fixture.content, 8);
        let mut disk: Box<dyn Disk> = fixture.base();
        for depth in 0..4 {
            let mut overlay = Overlay::create(&fixture.path(&format!("top{depth}")), disk, engine).unwrap();
            model.play(&mut overlay, 80);
            overlay.seal().unwrap().finish().unwrap();
            model.compare(&mut overlay);
            disk = Box::new(overlay);
        }
        drop(disk);
        let mut disk: Box<dyn Disk> = fixture.base();
        for depth in 0..4 {
            disk = Box::new(Overlay::open(&fixture.path(&format!("top{depth}")), disk, engine).unwrap());
        }
        model.compare(disk.as_mut());
    }
}

#[test]
fn sealed_is_sealed() {
    let fixture = Fixture::new(None);
    let mut overlay = fixture.create("top");
    write(&mut overlay, 4096, &[1; 512]);
    let sealing = overlay.seal().unwrap();
    let error = ask(&mut overlay, Request::Write { offset: 0, buffers: buffers(&[1; 512]) }).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert!(overlay.geometry().read_only);
    sealing.finish().unwrap();
    drop(overlay);
    // Sealed overlays are shared.
    let mut again = fixture.open("top");
    let _another = fixture.open("top");
    assert!(again.geometry().read_only);
    assert_eq!(read(&mut again, 4096, 512), [1; 512]);
    assert_eq!(read(&mut again, 4608, 512), fixture.content[4608..5120]);
    assert!(ask(&mut again, Request::Discard { offset: 0, len: 4096 }).is_err());
}

#[test]
fn what_was_not_flushed_is_as_it_was_after_a_crash_and_there_after_an_end() {
    let fixture = Fixture::new(None);
    let mut overlay = fixture.create("top");
    write(&mut overlay, 0, &[1; 8192]);
    ask(&mut overlay, Request::Flush).unwrap();
    write(&mut overlay, 8192, &[2; 8192]);
    ask(&mut overlay, Request::WriteZeroes { offset: 4096, len: 4096, unmap: true }).unwrap();
    // The file as it is when its process is killed now.
    std::fs::copy(fixture.path("top"), fixture.path("killed")).unwrap();
    drop(overlay);
    let mut killed = fixture.open("killed");
    assert_eq!(read(&mut killed, 0, 4096), [1; 4096]);
    assert_eq!(read(&mut killed, 8192, 8192), fixture.content[8192..16384]);
    let mut ended = fixture.open("top");
    assert_eq!(read(&mut ended, 4096, 12288), [[0; 4096], [2; 4096], [2; 4096]].concat());
}

#[test]
fn what_was_sealed_and_never_finished_is_there_after_an_end() {
    let fixture = Fixture::new(None);
    let mut lower = fixture.create("lower");
    write(&mut lower, 0, &[1; 4096]);
    // The capture came to nothing.
    drop(lower.seal().unwrap());
    let upper = Fresh::create(&fixture.path("upper"), SIZE as u64, None).unwrap();
    drop(upper.over_written(Box::new(lower)));
    assert_eq!(fixture.open_alone("lower"), [(0..4096, State::Data)]);
}

#[test]
fn a_flush_is_for_all_that_was_written_before() {
    for engine in ENGINES {
        let fixture = Fixture::new(engine);
        let mut lower = fixture.create("lower");
        write(&mut lower, 0, &[1; 4096]);
        // Whoever is to make it durable has not come to it.
        let sealing = lower.seal().unwrap();
        let upper = Fresh::create(&fixture.path("upper"), SIZE as u64, engine).unwrap();
        let mut upper = upper.over_written(Box::new(lower));
        write(&mut upper, 8192, &[2; 4096]);
        ask(&mut upper, Request::Flush).unwrap();
        assert!(!sealing.is_finished());
        drop(upper);
        let mut upper =
            Overlay::open(&fixture.path("upper"), Box::new(fixture.open("lower")), engine).unwrap();
        assert_eq!((read(&mut upper, 0, 4096), read(&mut upper, 8192, 4096)), (vec![1; 4096], vec![2; 4096]));
    }
}

#[test]
fn sealing_writes_nothing_before_its_blocks_are_durable() {
    let fixture = Fixture::new(None);
    let mut overlay = fixture.create("top");
    write(&mut overlay, 0, &[1; 4096]);
    let sealing = overlay.seal().unwrap();
    assert!(fixture.open_alone("top").is_empty());
    sealing.finish().unwrap();
    sealing.finish().unwrap();
    drop(overlay);
    assert!(changes(&fixture.open("top").map).eq([(0..4096, State::Data)]));
}

/// A base that counts how often it is made durable, and cannot be at first.
struct Counting(Box<dyn Disk>, Arc<std::sync::atomic::AtomicUsize>, Vec<Done>);

impl Disk for Counting {
    fn geometry(&self) -> &Geometry {
        self.0.geometry()
    }
    fn submit(&mut self, tag: u64, request: Request) {
        assert!(matches!(request, Request::Flush));
        let number = self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let result = if number == 0 { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) };
        self.2.push(Done { tag, request, result });
    }
    fn finished(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.2);
    }
}

#[test]
fn a_base_that_was_written_to_is_made_durable_once() {
    let fixture = Fixture::new(None);
    let flushes = Arc::default();
    let base = Box::new(Counting(fixture.base(), Arc::clone(&flushes), Vec::new()));
    let mut overlay = Fresh::create(&fixture.path("top"), SIZE as u64, None).unwrap().over_written(base);
    write(&mut overlay, 0, &[1; 4096]);
    assert_eq!(ask(&mut overlay, Request::Flush).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(fixture.open_alone("top").is_empty(), "the map speaks of what may not be there");
    for _ in 0..2 {
        ask(&mut overlay, Request::Flush).unwrap();
    }
    assert_eq!(flushes.load(std::sync::atomic::Ordering::SeqCst), 2);
    assert_eq!(fixture.open_alone("top"), [(0..4096, State::Data)]);
}

#[test]
fn partial_writes_of_one_block_do_not_lose_each_other() {
    for engine in ENGINES {
        let fixture = Fixture::new(engine);
        let mut overlay = fixture.create("top");
        for sector in 0..8u8 {
            let request =
                Request::Write { offset: u64::from(sector) * 512, buffers: buffers(&[sector; 512]) };
            overlay.submit(sector.into(), request);
        }
        overlay.submit(8, Request::WriteZeroes { offset: 4096 - 512, len: 1024, unmap: false });
        assert!(wait(&mut overlay, 9).iter().all(|done| done.result.is_ok()));
        let bytes = read(&mut overlay, 0, 8192);
        assert!((0..7).all(|sector| bytes[sector * 512..(sector + 1) * 512] == [sector as u8; 512]));
        assert_eq!(bytes[4096..4608], [0; 512]);
        assert_eq!(bytes[4608..], fixture.content[4608..8192]);
    }
}

#[test]
fn is_small_when_idle() {
    let fixture = Fixture::new(None);
    let base = std::fs::File::create(fixture.path("base")).unwrap();
    base.set_len(10 << 30).unwrap();
    let mut overlay = fixture.create("top");
    ask(&mut overlay, Request::Flush).unwrap();
    let on_disk = || std::fs::metadata(fixture.path("top")).unwrap().blocks() * 512;
    assert!(on_disk() <= 8192, "{} bytes", on_disk());
    write(&mut overlay, 5 << 30, &[1; 4096]);
    ask(&mut overlay, Request::Flush).unwrap();
    assert!(on_disk() <= 32768, "{} bytes", on_disk());
    // Discards of all of it: no data, and a map of 2 bits per block.
    for gib in 0..10 {
        ask(&mut overlay, Request::Discard { offset: gib << 30, len: 1 << 30 }).unwrap();
    }
    ask(&mut overlay, Request::Flush).unwrap();
    assert!(on_disk() <= 700 << 10, "{} bytes", on_disk());
    assert!(changes(&overlay.map).eq([(0..10 << 30, State::Zero)]));
}

#[test]
fn tells_what_changed() {
    let fixture = Fixture::new(None);
    let mut overlay = fixture.create("top");
    write(&mut overlay, 512, &[1; 512]);
    write(&mut overlay, 8192, &[1; 4097 + 511]);
    ask(&mut overlay, Request::Discard { offset: 100, len: 20_000 }).unwrap();
    write(&mut overlay, SIZE as u64 - 512, &[9; 512]);
    let end = (SIZE as u64).next_multiple_of(BLOCK);
    let expected = [(0..4096, State::Data), (4096..16384, State::Zero), (end - 4096..end, State::Data)];
    assert!(changes(&overlay.map).eq(expected), "{:?}", changes(&overlay.map).collect::<Vec<_>>());
}

#[test]
fn without_a_name_nothing_is_left() {
    for place in ["/var/tmp", "/dev/shm"] {
        let fixture = Fixture::new(None);
        let before = std::fs::read_dir(fixture.directory.path()).unwrap().count();
        let Ok(mut overlay) = Overlay::nameless(Path::new(place), fixture.base(), None) else { continue };
        Model::new(&fixture.content, 3).play(&mut overlay, 100);
        assert_eq!(std::fs::read_dir(fixture.directory.path()).unwrap().count(), before);
        assert_eq!(std::fs::read(fixture.path("base")).unwrap(), fixture.content);
    }
}

#[test]
fn without_a_name_the_file_is_made_for_the_first_write() {
    for engine in [None, Some(Engine::Sync)] {
        let fixture = Fixture::new(None);
        let (place, elsewhere) = (fixture.path("place/snapshot"), fixture.path("place"));
        std::fs::create_dir_all(&place).unwrap();
        let files = || {
            let open = std::fs::read_dir("/proc/self/fd").unwrap();
            let files = open.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
            files.filter(|file| file.starts_with(&elsewhere)).count()
        };
        let mut overlay = Overlay::nameless(&place, fixture.base(), engine).unwrap();
        assert_eq!(read(&mut overlay, 0, 4096), fixture.content[..4096]);
        ask(&mut overlay, Request::Flush).unwrap();
        let watched = overlay.events();
        assert_eq!(files(), 0);
        std::fs::remove_dir(&place).unwrap();
        write(&mut overlay, 512, &[7; 512]);
        assert_eq!((files(), overlay.events()), (1, watched));
        assert_eq!(read(&mut overlay, 512, 512), [7; 512]);
        assert_eq!(read(&mut overlay, 0, 512), fixture.content[..512]);
    }
}

#[test]
fn refuses_files_that_are_not_overlays() {
    let fixture = Fixture::new(None);
    drop(fixture.create("top"));
    let good = std::fs::read(fixture.path("top")).unwrap();
    let footer = good.len() - 4096;
    let refuse = |change: &dyn Fn(&mut Vec<u8>), reason: &str| {
        let mut bytes = good.clone();
        change(&mut bytes);
        std::fs::write(fixture.path("bad"), bytes).unwrap();
        let message = Overlay::open(&fixture.path("bad"), fixture.base(), None).err().unwrap().to_string();
        assert!(message.ends_with(reason), "{message}");
    };
    refuse(&|bytes| bytes.truncate(100), "is not valid: it is too short");
    refuse(&|bytes| bytes.truncate(8192), "is not valid: it does not end as one");
    refuse(&|bytes| bytes[footer + 16] = 2, "is not valid: it has version 2, this rvmm knows 1");
    refuse(&|bytes| bytes[footer + 20] = 6, "is not valid: it has unknown flags 0x6");
    refuse(&|bytes| bytes[footer + 25] ^= 0x40, "its size is not that of its disk");
    refuse(&|bytes| bytes[footer + 31] = 0xff, "its size is not that of its disk");
    refuse(&|bytes| bytes[footer - 4096] = 3, "its map is damaged");
    std::fs::File::options()
        .write(true)
        .open(fixture.path("base"))
        .unwrap()
        .set_len(SIZE as u64 + 512)
        .unwrap();
    refuse(&|_| (), "it is for a disk of 2098688 bytes, this one has 2099200");
    // Only there can files be so long on every host: a map of it would be longer than memory.
    let Ok(long) = tempfile::tempfile_in("/dev/shm") else { return };
    Layout { size: 1 << 60 }.format(&long).unwrap();
    let error = changes_of(&long, Path::new("long")).unwrap_err().to_string();
    assert_eq!(error, "Overlay long is not valid: its disk is larger than any");
}

/// A base that fails.
struct Broken(Geometry, Vec<Done>);

impl Disk for Broken {
    fn geometry(&self) -> &Geometry {
        &self.0
    }
    fn submit(&mut self, tag: u64, request: Request) {
        self.1.push(Done { tag, request, result: Err(io::Error::from_raw_os_error(libc::EIO)) });
    }
    fn finished(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.1);
    }
}

#[test]
fn errors_of_the_base_change_nothing() {
    let geometry = Geometry { size: 1 << 20, physical_block: 512, read_only: true, discard: false };
    let base = Box::new(Broken(geometry, Vec::new()));
    let mut overlay = Overlay::nameless(Path::new("/tmp"), base, None).unwrap();
    let partial = || Request::Write { offset: 512, buffers: buffers(&[1; 6000 - 6000 % 512]) };
    assert_eq!(ask(&mut overlay, partial()).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(changes(&overlay.map).next().is_none() && overlay.is_idle());
    write(&mut overlay, 0, &[1; 4096]);
    assert_eq!(read(&mut overlay, 0, 4096), [1; 4096]);
}

#[test]
fn the_file_says_where_things_are() {
    let fixture = Fixture::new(None);
    let mut overlay = fixture.create("top");
    write(&mut overlay, 4096, &[7; 4096]);
    ask(&mut overlay, Request::WriteZeroes { offset: 8192, len: 4096, unmap: true }).unwrap();
    ask(&mut overlay, Request::Flush).unwrap();
    let file = std::fs::File::open(fixture.path("top")).unwrap();
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [7; 4096]);
    file.read_exact_at(&mut bytes, (SIZE as u64).next_multiple_of(4096)).unwrap();
    assert_eq!(bytes[..2], [0b10_01_00, 0]);
    file.read_exact_at(&mut bytes, file.metadata().unwrap().len() - 4096).unwrap();
    assert_eq!(bytes[..16], *b"rvmm overlay\0\0\0\0");
    assert_eq!(bytes[24..32], (SIZE as u64).to_le_bytes());
}
