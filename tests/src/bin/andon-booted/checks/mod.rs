//! The checks, by the phase they belong to.
//!
//! They are made in this order on one machine: what an earlier one leaves running, a later one uses.

mod ask;
mod identity;
mod install;
mod journal;
mod memory;
mod power;
mod reload;
mod sandbox;
mod watchdog;

use crate::Check;

/// Everything up to the moment at which the machine loses its power.
const FIRST: &[Check] = &[
    Check {
        name: "installed",
        run: install::is_complete,
    },
    Check {
        name: "verified",
        run: install::verifies,
    },
    Check {
        name: "set-up",
        run: install::set_up,
    },
    Check {
        name: "started-by-socket",
        run: ask::the_first_client_starts_the_daemon,
    },
    Check {
        name: "http",
        run: ask::over_http,
    },
    Check {
        name: "compact",
        run: ask::over_the_compact_socket,
    },
    Check {
        name: "mqtt-tls",
        run: ask::over_mqtt,
    },
    Check {
        name: "mqtt-stranger",
        run: ask::the_broker_turns_strangers_away,
    },
    Check {
        name: "loopback-token",
        run: ask::over_loopback_with_a_token,
    },
    Check {
        name: "local-users",
        run: identity::users_have_different_rights,
    },
    Check {
        name: "journal",
        run: journal::has_fields_and_explains,
    },
    Check {
        name: "audit",
        run: journal::answers_are_recorded,
    },
    Check {
        name: "reload",
        run: reload::by_the_service_manager,
    },
    Check {
        name: "rotation",
        run: reload::certificates_are_renewed,
    },
    Check {
        name: "sandbox-status",
        run: sandbox::is_in_force,
    },
    Check {
        name: "sandbox",
        run: sandbox::denies,
    },
    Check {
        name: "watchdog",
        run: watchdog::a_hung_decode_is_ended,
    },
    Check {
        name: "power-off",
        run: power::is_cut_in_mid_answer,
    },
];

/// With limits of memory that the kernel keeps, up to the loss of the power.
const MEMORY: &[Check] = &[
    Check {
        name: "installed",
        run: install::is_complete,
    },
    Check {
        name: "set-up",
        run: install::set_up,
    },
    Check {
        name: "started-by-socket",
        run: ask::the_first_client_starts_the_daemon_slowly,
    },
    Check {
        name: "mqtt-tls",
        run: ask::over_mqtt,
    },
    Check {
        name: "memory-budget",
        run: memory::stays_within_its_budget,
    },
    Check {
        name: "oom-kill",
        run: memory::is_restarted_for_want_of_memory,
    },
    Check {
        name: "power-off",
        run: power::is_cut_in_mid_answer,
    },
];

/// After the power came back.
const AFTER: &[Check] = &[
    Check {
        name: "recovered",
        run: power::what_was_asked_is_answered,
    },
    Check {
        name: "stopped",
        run: power::stops_cleanly,
    },
];

/// The checks of a phase, if there is one of that name.
pub(crate) fn of(phase: &str) -> Option<&'static [Check]> {
    match phase {
        "first" => Some(FIRST),
        "memory" => Some(MEMORY),
        "after" => Some(AFTER),
        _ => None,
    }
}
