//! What a driver refuses or a device breaks is told apart, and what is lost stays lost.

use crate::emulated::{in_emulation, open};
use andon_cuda::{Device, Error};
use andon_cuda_check::passes::{all, numbers};

fn refused(ordinal: usize) -> Error {
    Device::open(ordinal).expect_err("there is no such device")
}

#[test]
fn no_device() {
    in_emulation(
        "faults::no_device",
        &[("ANDON_EMULATED_DEVICES", "0")],
        || {
            assert_eq!(refused(0), Error::NoDevice { ordinal: 0 });
        },
    );
}

#[test]
fn not_so_many_devices() {
    in_emulation(
        "faults::not_so_many_devices",
        &[("ANDON_EMULATED_DEVICES", "2")],
        || {
            assert_eq!(refused(2), Error::NoDevice { ordinal: 2 });
            assert!(Device::open(1).is_ok());
        },
    );
}

#[test]
fn too_old() {
    in_emulation(
        "faults::too_old",
        &[("ANDON_EMULATED_CAPABILITY", "75")],
        || {
            assert_eq!(andon_cuda::not_built(), None);
            let capability = (7, 5);
            assert_eq!(refused(0), Error::TooOld { capability });
        },
    );
}

#[test]
fn no_machine_code() {
    // No image for the device; images or PTX of a newer toolkit than the driver's.
    for code in [209, 200, 222] {
        let said = code.to_string();
        let variables = [
            ("ANDON_EMULATED_CAPABILITY", "120"),
            ("ANDON_EMULATED_IMAGE_ERROR", said.as_str()),
        ];
        in_emulation("faults::no_machine_code", &variables, || {
            let error = refused(0);
            let capability = (12, 0);
            let Error::NoKernels { code, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(error, Error::NoKernels { capability, code });
            let text = error.to_string();
            assert!(text.contains("12.0") && text.contains(&code.to_string()));
        });
    }
}

#[test]
fn devices_of_8_0_and_later_open() {
    for capability in ["80", "86", "89", "90", "121"] {
        // What those let a block have that let it have least.
        let variables = [
            ("ANDON_EMULATED_CAPABILITY", capability),
            ("ANDON_EMULATED_SHARED_MEMORY", "101376"),
        ];
        in_emulation("faults::devices_of_8_0_and_later_open", &variables, || {
            open();
        });
    }
}

#[test]
fn too_little_shared_memory() {
    let variables = [("ANDON_EMULATED_SHARED_MEMORY", "65536")];
    in_emulation("faults::too_little_shared_memory", &variables, || {
        let error = refused(0);
        assert!(
            matches!(error, Error::SharedMemory { takes, has: 65536, .. } if takes > 65536),
            "{error}"
        );
    });
}

#[test]
fn no_driver() {
    // Only where there is none, nor an nvcc: on others the real one would be asked.
    if andon_cuda::not_built().is_some() {
        assert!(matches!(refused(0), Error::NotBuilt(_)));
    }
}

#[test]
fn out_of_memory() {
    let memory = [("ANDON_EMULATED_MEMORY", "4000000")];
    in_emulation("faults::out_of_memory", &memory, || {
        let device = open();
        let (free, total) = device.limits().expect("they are known").memory_bytes;
        assert!(total == 4_000_000 && free <= total);
        let kept = device.upload(&numbers(1, 1000)).expect("little");
        let bytes = 4_000_000;
        let error = device.zeros::<f32>(1_000_000).err();
        assert_eq!(error, Some(Error::OutOfMemory { bytes }));
        let columns = device.columns(1 << 20, 8).err();
        assert!(matches!(columns, Some(Error::OutOfMemory { bytes }) if bytes > 8 << 20));
        // What there was is there still, and there is room for less.
        assert_eq!(all(&device, &kept), numbers(1, 1000));
        let less = device.zeros::<f32>(900_000).expect("room for less");
        assert!(device.zeros::<f32>(200_000).is_err());
        drop(less);
        assert!(
            device.zeros::<f32>(900_000).is_ok(),
            "what is dropped is free"
        );
    });
}

/// Uses the device until it fails, which it has to after three launches, and returns how.
fn broken() -> Error {
    let device = open();
    let x = device.upload(&numbers(2, 64)).expect("room");
    let mut columns = device.columns(64, 1).expect("room");
    for _ in 0..3 {
        device
            .quantize(&x, 64, 1, &mut columns)
            .expect("it is asked for");
        device.finish().expect("it works");
    }
    // As with a real device, what goes wrong is told to who asks next.
    device
        .quantize(&x, 64, 1, &mut columns)
        .expect("it is asked for");
    let error = device.finish().expect_err("it failed");
    for again in [
        device.zeros::<f32>(1).err(),
        device.quantize(&x, 64, 1, &mut columns).err(),
    ] {
        let again = again.expect("it does not come back");
        assert_eq!(again.is_lost(), error.is_lost(), "{again}");
    }
    let mut values = vec![0.0; 64];
    assert!(device.read(&x, &mut values).is_err());
    assert!(device.record(|| Ok(())).is_err());
    assert!(device.limits().is_err());
    error
}

fn lost(name: &str, code: &str) {
    let after = [
        ("ANDON_EMULATED_LAUNCHES", "3"),
        ("ANDON_EMULATED_ERROR", code),
    ];
    in_emulation(name, &after, || {
        let code = code.parse().expect("a number");
        let error = broken();
        assert_eq!(error, Error::Lost { code });
        assert!(error.is_lost());
    });
}

#[test]
fn an_illegal_address_is_a_lost_device() {
    lost("faults::an_illegal_address_is_a_lost_device", "700");
}

#[test]
fn a_launch_that_failed_is_a_lost_device() {
    lost("faults::a_launch_that_failed_is_a_lost_device", "719");
}

#[test]
fn broken_memory_is_a_lost_device() {
    lost("faults::broken_memory_is_a_lost_device", "214");
}

#[test]
fn a_device_that_fell_off_the_bus_is_lost() {
    lost("faults::a_device_that_fell_off_the_bus_is_lost", "999");
}

#[test]
fn what_is_refused_is_not_lost() {
    let after = [
        ("ANDON_EMULATED_LAUNCHES", "3"),
        ("ANDON_EMULATED_ERROR", "701"),
    ];
    in_emulation("faults::what_is_refused_is_not_lost", &after, || {
        let error = broken();
        assert!(matches!(error, Error::Driver { code: 701, .. }), "{error}");
        assert!(!error.is_lost());
    });
}

#[test]
fn no_room_for_a_launch_is_out_of_memory() {
    let after = [
        ("ANDON_EMULATED_LAUNCHES", "3"),
        ("ANDON_EMULATED_ERROR", "2"),
    ];
    in_emulation(
        "faults::no_room_for_a_launch_is_out_of_memory",
        &after,
        || {
            let device = open();
            let x = device.upload(&numbers(2, 64)).expect("room");
            let mut columns = device.columns(64, 1).expect("room");
            for _ in 0..4 {
                device
                    .quantize(&x, 64, 1, &mut columns)
                    .expect("it is asked for");
            }
            assert_eq!(device.finish(), Err(Error::OutOfMemory { bytes: 0 }));
        },
    );
}
