//! Recorded launches do what others do, and nothing is recorded but them.

use crate::emulated::{in_emulation, open};
use andon_cuda::{Buffer, Device, Error, Given, Graph, KvType, PAGE, Places, Room, Run};
use andon_cuda_check::passes::{self, Model, PAGES, all, numbers, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

const K: usize = 64;

#[test]
fn recorded_passes_follow_their_places() {
    let name = "graphs::recorded_passes_follow_their_places";
    in_emulation(name, &[], || assert!(passes::check(&open()) > 0));
}

fn refused_graph(graph: &Graph, places: Option<&Places>) {
    let result = catch_unwind(AssertUnwindSafe(|| graph.launch(places)));
    assert!(result.is_err(), "it is not for these places");
}

#[test]
fn graphs_are_for_their_places() {
    in_emulation("graphs::graphs_are_for_their_places", &[], || {
        let device = open();
        let mut model = Model::new(&device, 2, 2 * PAGE, KvType::F16);
        let mut places = device.places(8, PAGES, PAGES).expect("room");
        device
            .place(&[run(2, 0, &[0, 1])], 2 * PAGE, &mut places)
            .expect("they are there");
        let graph = device
            .record(|| model.pass(&device, &places))
            .expect("it is recorded");
        refused_graph(&graph, None);
        let mut other = device.places(8, PAGES, PAGES).expect("room");
        device
            .place(&[run(2, 0, &[0, 1])], 2 * PAGE, &mut other)
            .expect("they are there");
        refused_graph(&graph, Some(&other));
        let mut place = |runs: &[Run<'_>], reach| {
            device
                .place(runs, reach, &mut places)
                .expect("they are there");
            catch_unwind(AssertUnwindSafe(|| graph.launch(Some(&places))))
        };
        assert!(
            place(&[run(3, 0, &[0, 1])], 2 * PAGE).is_err(),
            "more columns"
        );
        assert!(
            place(&[run(1, 0, &[0, 1])], 2 * PAGE).is_err(),
            "fewer columns"
        );
        assert!(place(&[run(2, 0, &[0, 1])], 3 * PAGE).is_err(), "farther");
        assert!(
            matches!(place(&[run(2, 0, &[0, 1])], PAGE), Ok(Ok(()))),
            "nearer"
        );
    });
}

#[test]
fn graphs_are_for_as_much_as_was_given() {
    let name = "graphs::graphs_are_for_as_much_as_was_given";
    in_emulation(name, &[], || {
        let device = open();
        let room = Room {
            columns: 2,
            pages: 1,
            page_count: PAGES,
            outputs: 2,
            numbers: 2,
        };
        let mut places = device.room(&room).expect("room");
        let mut model = Model::new(&device, 2, PAGE, KvType::F16);
        let given = |outputs, numbers| Given {
            runs: const { &[run(2, 0, &[0])] },
            reach: PAGE,
            tokens: &[],
            outputs,
            numbers,
        };
        device
            .give(&given(&[0], &[1.0]), &mut places)
            .expect("there is room");
        let graph = device.record(|| model.pass(&device, &places));
        let graph = graph.expect("it is recorded");
        // Places are elsewhere where there is more or less before them.
        for (outputs, numbers) in [(&[0, 1][..], &[1.0][..]), (&[], &[1.0]), (&[0], &[])] {
            device
                .give(&given(outputs, numbers), &mut places)
                .expect("there is room");
            refused_graph(&graph, Some(&places));
        }
        device
            .give(&given(&[1], &[2.0]), &mut places)
            .expect("there is room");
        graph.launch(Some(&places)).expect("it runs");
    });
}

#[test]
fn graphs_keep_what_they_use() {
    in_emulation("graphs::graphs_keep_what_they_use", &[], || {
        let device = open();
        let output = device.zeros::<f32>(K).expect("room");
        let graph = {
            let from = device.upload(&numbers(8, K)).expect("room");
            let mut to = output;
            device
                .record(|| device.copy(&from, &mut to))
                .expect("it is recorded")
        };
        // Both buffers are dropped. Memory of theirs that was free would be others' now, or nobody's.
        let others: Vec<_> = (0..64)
            .map(|_| device.upload(&[7.0; K]).expect("room"))
            .collect();
        graph.launch(None).expect("it runs");
        device.finish().expect("it worked");
        for other in &others {
            assert_eq!(all(&device, other), [7.0; K]);
        }
    });
}

fn is_refused(error: Option<Error>, what: &str) {
    let refused = matches!(error, Some(Error::WhileRecording { .. }));
    assert!(refused, "{what}: {error:?}");
}

#[test]
fn what_cannot_be_repeated_is_not_recorded() {
    let name = "graphs::what_cannot_be_repeated_is_not_recorded";
    in_emulation(name, &[], || {
        let device = open();
        let mut x = device.upload(&numbers(9, K)).expect("room");
        let mut columns = device.columns(K, 1).expect("room");
        let graph = device
            .record(|| device.quantize(&x, K, 1, &mut columns))
            .expect("it is recorded");
        let mark = device.mark().expect("an end");
        // The driver would take some of these, and the graph would hold addresses of nothing.
        let record = |work: &mut dyn FnMut() -> Result<(), Error>| device.record(work).err();
        is_refused(record(&mut || device.zeros::<f32>(1).map(drop)), "memory");
        is_refused(record(&mut || device.upload(&[1.0]).map(drop)), "a copy");
        is_refused(record(&mut || device.columns(K, 1).map(drop)), "columns");
        is_refused(record(&mut || device.read(&x, &mut [0.0; K])), "reading");
        is_refused(record(&mut || device.finish()), "waiting for all");
        is_refused(record(&mut || device.mark().map(drop)), "an end");
        is_refused(record(&mut || device.wait_for(&mark)), "waiting");
        is_refused(record(&mut || graph.launch(None)), "a graph");
        is_refused(record(&mut || graph.time(None, 1).map(drop)), "timing");
        let error = device.record(|| device.write(&[1.0; K], &mut x)).err();
        is_refused(error, "writing");
        // It is refused before the driver is asked, so what else was launched is recorded all the same.
        let graph = device.record(|| {
            is_refused(device.zeros::<f32>(1).err(), "memory");
            device.quantize(&x, K, 1, &mut columns)
        });
        graph
            .expect("it is recorded")
            .launch(None)
            .expect("it runs");
        let empty = device.record(|| Ok(()));
        assert!(empty.is_ok_and(|graph| graph.launch(None).is_ok()));
        let given_up = Error::Lost { code: 1 };
        assert_eq!(device.record(|| Err(given_up)).err(), Some(given_up));
        assert_eq!(all(&device, &x), numbers(9, K), "it is as it was");
    });
}

fn free_bytes(device: &Device) -> usize {
    device.limits().expect("they are known").memory_bytes.0
}

#[test]
fn memory_that_is_dropped_while_recording_is_free_afterwards() {
    let name = "graphs::memory_that_is_dropped_while_recording_is_free_afterwards";
    in_emulation(name, &[], || {
        let device = open();
        let free = free_bytes(&device);
        let (from, mut to) = (device.upload(&numbers(8, K)), device.upload(&[7.0; K]));
        let unused = device.zeros::<f32>(K).expect("room");
        let all_taken = free_bytes(&device);
        let graph = device
            .record(|| {
                let from = from.expect("room");
                device.copy(&from, to.as_mut().expect("room"))?;
                drop(unused);
                assert_eq!(free_bytes(&device), all_taken, "it is nobody's yet");
                Ok(())
            })
            .expect("it is recorded");
        assert_eq!(free_bytes(&device), all_taken + 4 * K, "what is not used");
        graph.launch(None).expect("it runs");
        assert_eq!(all(&device, &to.expect("room")), numbers(8, K));
        drop(graph);
        assert_eq!(free_bytes(&device), free);
    });
}

#[test]
fn a_recording_ends_where_its_thread_panics() {
    let name = "graphs::a_recording_ends_where_its_thread_panics";
    in_emulation(name, &[], || {
        let device = open();
        let free = free_bytes(&device);
        let mut x = device.upload(&numbers(9, K)).expect("room");
        let dropped = device.zeros::<f32>(K).expect("room");
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            device.record(|| {
                let _dropped = dropped;
                device.clear(&mut x)?;
                panic!("in the middle");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(all(&device, &x), numbers(9, K), "nothing ran");
        let graph = device.record(|| device.clear(&mut x));
        graph
            .expect("it is recorded")
            .launch(None)
            .expect("it runs");
        assert_eq!(all(&device, &x), [0.0; K]);
        drop(x);
        assert_eq!(free_bytes(&device), free);
    });
}

#[test]
fn other_threads_wait_while_one_records() {
    in_emulation("graphs::other_threads_wait_while_one_records", &[], || {
        let device = open();
        let mut mine = device.upload(&[1.0; K]).expect("room");
        let mut others: Buffer<f32> = device.upload(&[2.0; K]).expect("room");
        let unused = device.zeros::<f32>(K).expect("room");
        thread::scope(|scope| {
            let (begin, begun) = channel();
            let (ended, end) = channel();
            let (sender, graphs) = channel::<Graph>();
            let device = &device;
            scope.spawn(move || {
                begun.recv().expect("it records");
                // None of these is in the graph, and none spoils it.
                device.clear(&mut others).expect("it runs");
                drop(unused);
                assert_eq!(all(device, &others), [0.0; K]);
                device.write(&[2.0; K], &mut others).expect("it fits");
                ended.send(()).expect("somebody waits");
                let graph = graphs.recv().expect("a graph");
                graph.launch(None).expect("it runs");
                assert_eq!(all(device, &others), [2.0; K], "it is not in the graph");
            });
            let graph = device.record(|| {
                begin.send(()).expect("it waits");
                let early = end.recv_timeout(Duration::from_millis(200));
                assert!(early.is_err(), "it is not its turn");
                device.clear(&mut mine)
            });
            let graph = graph.expect("it is recorded");
            end.recv().expect("its turn came");
            assert_eq!(all(device, &mine), [1.0; K], "nothing ran");
            sender.send(graph).expect("somebody waits");
        });
    });
}
