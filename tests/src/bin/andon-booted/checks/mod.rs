//! The checks, by the phase they belong to.
//!
//! They are made in this order on one machine: what an earlier one leaves running, a later one uses.

mod ask;
mod identity;
mod install;
mod journal;
mod memory;
mod package;
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
        name: "rotation-restart",
        run: reload::credentials_are_renewed_by_a_restart,
    },
    Check {
        name: "rotation-reload",
        run: reload::own_files_are_renewed_by_a_reload,
    },
    Check {
        name: "revocation",
        run: reload::the_former_certificate_is_refused,
    },
    Check {
        name: "mqtt-password",
        run: reload::a_password_is_handed_over,
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
        name: "sandbox-lines",
        run: sandbox::holds_by_its_lines,
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

/// Programs as they are shipped, with a real model.
const RELEASE: &[Check] = &[
    Check {
        name: "installed",
        run: install::is_complete,
    },
    Check {
        name: "set-up",
        run: install::set_up,
    },
    Check {
        name: "real-model",
        run: install::serve_a_real_model,
    },
    Check {
        name: "first-byte",
        run: ask::every_start_is_as_fast_as_promised,
    },
];

/// The same with limits of memory that the kernel keeps.
const RELEASE_MEMORY: &[Check] = &[
    Check {
        name: "installed",
        run: install::is_complete,
    },
    Check {
        name: "set-up",
        run: install::set_up,
    },
    Check {
        name: "real-model",
        run: install::serve_a_real_model,
    },
    Check {
        name: "memory-budget",
        run: memory::stays_within_its_budget_with_a_real_model,
    },
];

/// The Debian package on a system that has nothing of andon.
const PACKAGE: &[Check] = &[
    Check {
        name: "package-installed",
        run: package::is_installed,
    },
    Check {
        name: "package-upgraded",
        run: package::is_upgraded,
    },
    Check {
        name: "package-removed",
        run: package::is_removed,
    },
    Check {
        name: "package-again",
        run: package::is_installed_again,
    },
    Check {
        name: "package-purged",
        run: package::is_purged,
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
        "release" => Some(RELEASE),
        "release-memory" => Some(RELEASE_MEMORY),
        "package" => Some(PACKAGE),
        _ => None,
    }
}
