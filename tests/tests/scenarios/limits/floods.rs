//! Floods: frames that cost a peer little, as many as the broker takes. Each ends the connection or costs no memory.

use std::io;

use postern_tests::stranger::{
    END_HEADERS, END_STREAM, Frames, INDEXED, PREFACE, WATCH, frame, grpc, headers, indexing_headers, kind,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::*;

/// The largest number of frames of a flood, and the number that are sent at once.
const FRAMES: usize = 200_000;
const BATCH: usize = 500;
/// The time within which a flood must be sent; a peer whose frames are not read any more waits for that long.
const FLOOD: Duration = Duration::from_secs(8);

/// Sends batches of frames until the connection ends or all were sent, and reads only where it says so.
async fn flood(frames: Frames, reads: bool, mut batch: impl FnMut(usize) -> Vec<u8>) {
    let (mut read, mut write) = tokio::io::split(frames.into_inner());
    let send = async {
        for number in 0..FRAMES / BATCH {
            write.write_all(&batch(number)).await?;
        }
        write.flush().await
    };
    let drain = async {
        let mut sink = vec![0; 16 * 1024];
        while reads && read.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    // However it ends, the broker is looked at afterwards.
    let _ = timeout(FLOOD, async { tokio::join!(send, drain) }).await;
}

fn withstands(
    what: &str,
    reads: bool,
    opening: Vec<u8>,
    batch: impl FnMut(usize) -> Vec<u8> + Send + 'static,
) {
    let mut world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice));
    let stranger = Stranger::new(&world.broker, &world.net.mallory, &world.net.hub);
    let flooding = world.net.mallory.netns().start(async move {
        let mut frames = stranger.http2().await.expect("the broker takes a connection");
        frames.send(&opening).await.expect("the connection holds");
        flood(frames, reads, batch).await;
    });
    std::thread::sleep(HELD);
    revokes(&mut world, &grant.id, what);
    flooding.join();
    let memory = peak_memory(&mut world.broker);
    assert!(memory < MEMORY, "{what}: {memory} MiB");
    world.admin.wait_in_sync(VM);
}

/// The odd stream numbers from that of this frame of this batch on.
fn stream(batch: usize, number: usize) -> u32 {
    u32::try_from(3 + 2 * (batch * BATCH + number)).unwrap()
}

#[test]
fn i10_a_flood_of_pings_whose_answers_are_not_read_costs_no_memory() {
    let ping = frame(kind::PING, 0, 0, &[7; 8]);
    withstands("pings", false, Vec::new(), move |_| ping.repeat(BATCH));
}

#[test]
fn i10_a_flood_of_settings_whose_answers_are_not_read_costs_no_memory() {
    let settings = frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]);
    withstands("settings", false, Vec::new(), move |_| settings.repeat(BATCH));
}

#[test]
fn i10_headers_that_go_on_without_end_cost_no_memory() {
    let opening = frame(kind::HEADERS, 0, 1, &headers(WATCH));
    // A header that no call has: literal, not indexed, 1,000 bytes of value.
    let header = [&[0x00, 1, b'x', 0x7f, 0xe9, 0x06][..], &[b'y'; 1_000]].concat();
    let more = frame(kind::CONTINUATION, 0, 1, &header);
    withstands("headers", true, opening, move |_| more.repeat(BATCH / 10));
}

#[test]
fn i10_calls_that_are_reset_at_once_cost_no_memory() {
    let opening = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &indexing_headers(WATCH));
    withstands("resets", true, opening, |batch| {
        let reset = |number| {
            let stream = stream(batch, number);
            let call = frame(kind::HEADERS, END_HEADERS, stream, INDEXED);
            [call, frame(kind::RESET, 0, stream, &[0, 0, 0, 8])].concat()
        };
        (0..BATCH).flat_map(reset).collect()
    });
}

#[test]
fn i10_calls_that_are_wrong_and_reset_by_the_broker_cost_no_memory() {
    let opening = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &indexing_headers(WATCH));
    withstands("errors", true, opening, |batch| {
        let wrong = |number| {
            let stream = stream(batch, number);
            let call = frame(kind::HEADERS, END_HEADERS, stream, INDEXED);
            // A window that grows by nothing is an error of the stream, which the broker resets.
            [call, frame(8, 0, stream, &[0; 4])].concat()
        };
        (0..BATCH).flat_map(wrong).collect()
    });
}

#[test]
fn i10_answers_that_are_not_taken_cost_no_memory() {
    let mut world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice));
    let strangers = from_addresses(&world.broker, &world.net.mallory, &world.net.hub, 20);
    let holding = world.net.mallory.netns().start(async move {
        let mut held = Vec::new();
        for stranger in strangers.iter().cycle().take(400) {
            // Windows of no bytes: every answer waits. The broker may have closed it for a newer one.
            let Ok(tls) = stranger.tls().await else { continue };
            let mut tls = tls;
            let settings = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
            let mut bytes = [PREFACE, &settings].concat();
            for stream in [1, 3, 5, 7, 9, 11, 13, 15] {
                bytes.extend(frame(kind::HEADERS, END_HEADERS, stream, &headers(WATCH)));
                bytes.extend(frame(kind::DATA, END_STREAM, stream, &grpc(&[])));
            }
            if tls.write_all(&bytes).await.is_ok() {
                held.push(tls);
            }
        }
        held
    });
    let held = holding.join();
    assert!(held.len() > 100, "{}", held.len());
    revokes(&mut world, &grant.id, "answers that are not taken");
    drop(held);
}
