//! What works when nothing goes wrong.

use std::time::Duration;

use client_lib::{Cluster, ConnectError, OpenOptions, Volume, VolumeError};

use crate::fake::Fake;

pub fn open(fake: &Fake) -> Volume {
    fake.create("vol0", 4 << 20);
    let cluster = Cluster::connect([fake.url()]).expect("a good URL");
    Volume::open(&cluster, "vol0").wait().expect("it was created")
}

/// Bytes that differ from block to block and from seed to seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn what_was_written_is_read_back_whatever_its_alignment() {
    let fake = Fake::start(2);
    let volume = open(&fake);
    let mut model = vec![0_u8; 4 << 20];
    let mib = 1 << 20;
    let ranges = [
        (0, 4096),
        (4096, 8192),
        (512, 512),
        (4095, 2),
        (1, 1),
        (10_000, 20_000),
        (mib - 1, 2),
        (mib - 4096, 8192),
        (100, 3 * mib),
        (4 * mib - 10, 10),
    ];
    for (seed, (offset, length)) in (1..).zip(ranges) {
        let data = noise(seed, length);
        let at = u64::try_from(offset).expect("small");
        volume.write(at, &data).wait().expect("the cluster is well");
        model[offset..offset + length].copy_from_slice(&data);
    }
    assert!(fake.content("vol0") == model, "the servers have other bytes");
    for (offset, length) in ranges.into_iter().chain([(0, 4 * mib), (777, 99_999)]) {
        let mut read = vec![0xEE; length];
        let at = u64::try_from(offset).expect("small");
        volume.read(at, &mut read).wait().expect("the cluster is well");
        assert!(read == model[offset..offset + length], "{length} bytes at {offset}");
    }
    volume.flush().wait().expect("the cluster is well");
    assert!(fake.seen().iter().any(|seen| seen.what == "flush"));
}

#[test]
fn zeroes_reach_into_partial_blocks_and_a_discard_does_not() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    let mut model = noise(5, 1 << 20);
    volume.write(0, &model).wait().expect("the cluster is well");
    volume.write_zeroes(100, 10_000).wait().expect("the cluster is well");
    model[100..10_100].fill(0);
    volume.discard(20_000, 10_000).wait().expect("the cluster is well");
    model[20_480..28_672].fill(0);
    volume.discard(40_000, 50).wait().expect("nothing to do");
    assert!(fake.content("vol0")[..1 << 20] == model);
}

#[test]
fn neighbours_in_one_block_do_not_lose_each_others_bytes() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    let model = noise(9, 8192);
    let writes: Vec<_> = (0..16)
        .map(|part| {
            let at = part * 512;
            let offset = u64::try_from(at).expect("small");
            volume.write(offset, &model[at..at + 512])
        })
        .collect();
    for write in writes {
        write.wait().expect("the cluster is well");
    }
    assert!(fake.content("vol0")[..8192] == model);
}

#[test]
fn a_range_beyond_the_end_is_refused_and_an_empty_one_is_not() {
    let fake = Fake::start(1);
    let volume = open(&fake);
    assert_eq!(volume.size(), 4 << 20);
    let refused = volume.write((4 << 20) - 1, &[1, 2]).wait().expect_err("one byte too many");
    assert_eq!(
        refused,
        VolumeError::OutOfRange {
            offset_bytes: (4 << 20) - 1,
            length_bytes: 2,
            size_bytes: 4 << 20
        }
    );
    volume.read(u64::MAX, &mut [0]).wait().expect_err("the sum overflows");
    volume.write(4 << 20, &[]).wait().expect("nothing");
    volume.read(0, &mut []).wait().expect("nothing");
}

#[test]
fn an_unknown_volume_and_a_silent_cluster_are_told_apart() {
    let fake = Fake::start(1);
    let cluster = Cluster::connect([fake.url()]).expect("a good URL");
    let error = Volume::open(&cluster, "nope").wait().expect_err("it was never created");
    assert_eq!(error, VolumeError::Unknown { name: "nope".to_owned() });

    fake.create("vol0", 1 << 20);
    fake.set_http_down(true);
    let hasty = cluster.clone().with_open_timeout(Some(Duration::from_millis(300)));
    let error = Volume::open(&hasty, "vol0").wait().expect_err("nobody answers");
    assert!(matches!(&error, VolumeError::OpenTimeout { last, .. } if last.contains("503")));
    let patient = Volume::open(&cluster, "vol0");
    fake.set_http_down(false);
    assert_eq!(patient.wait().expect("it answers again").size(), 1 << 20);

    let error = Cluster::connect(["127.0.0.1:1"]).expect_err("no URL");
    assert!(matches!(error, ConnectError::Url { .. }), "{error}");
}

#[test]
fn a_volume_that_is_opened_twice_is_one_attachment() {
    let fake = Fake::start(1);
    let first = open(&fake);
    let cluster = Cluster::connect([fake.url()]).expect("a good URL");
    let open = |_| Volume::open_with(&cluster, "vol0", OpenOptions::read_only()).wait();
    let both = [1, 2].map(open).map(|volume| volume.expect("it was created"));
    for volume in both.iter().chain([&first]) {
        volume.read(0, &mut [0; 512]).wait().expect("the cluster is well");
    }
    let mut clients: Vec<_> = fake.seen().iter().map(|seen| seen.client).collect();
    clients.dedup();
    assert_eq!(clients.len(), 2, "one attachment each");
}

#[test]
fn futures_wake_without_a_runtime() {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let fake = Fake::start(1);
    let volume = open(&fake);
    let mut work = pin!(async {
        let mut read = [9; 6];
        volume.write(3, b"future").await?;
        volume.read(3, &mut read).await.map(|()| read)
    });
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let result = loop {
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => break result,
            Poll::Pending => std::thread::park(),
        }
    };
    assert_eq!(&result.expect("the cluster is well"), b"future");
}
