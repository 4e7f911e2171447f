"""The options of kube-proxy that have no effect in pyproxy, each with the warning that is logged when it is set.

Their values are parsed and checked nevertheless, so that a mistake is an error here as it is there. ``--cleanup`` and
``--version`` are not options of Config: they select what the command does (`cli.run`).
"""

from dataclasses import dataclass

from pyproxy.config.grammar import COUNT, DURATION, FLOAT, GATES, INT, PATH, SWITCH, TEXT, VMODULE
from pyproxy.config.option import not_negative, option, positive, within

# kube-proxy's ports (`cluster/ports/ports.go`): probes, scrape configurations and load balancers expect them.
HEALTHZ_PORT = 10256
METRICS_PORT = 10249

ZERO_ONLY = "is deprecated: 0 disables the server, and any other value has no effect; use --{}-bind-address"
NO_PROFILES = "is accepted but has no effect: the profiles are those of a Go program"
NO_GATES = "is accepted but has no effect: pyproxy has no feature gates"
JSON_ONLY = "is accepted but has no effect: pyproxy always requests JSON"
KLOG = "is accepted but has no effect: it configures klog, and pyproxy logs to standard error only"
FEW_REQUESTS = (
    "is accepted but has no effect: pyproxy sends one watch request for each kind of object, and few other requests"
)
NO_RESYNC = "is accepted but has no effect: a watch reports every change, and pyproxy replaces a watch that ends"
NO_HIDDEN = "is accepted but has no effect: pyproxy hides no metric"
NO_MACHINE = "is accepted but has no effect, as in kube-proxy"


# Types and defaults are those of kube-proxy all the same: a command line or file that works there must work here, and a value
# that equals the default causes no warning.
@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoredOptions:
    """Options without effect."""

    feature_gates: tuple[tuple[str, bool], ...] = option((), GATES, "Feature gates of Kubernetes.", ignored=NO_GATES)
    kube_api_content_type: str = option(
        "application/vnd.kubernetes.protobuf", TEXT, "Encoding of API objects.", ignored=JSON_ONLY
    )
    kube_api_burst: int = option(
        10, INT, "Largest burst of requests to the API server.", check=not_negative, ignored=FEW_REQUESTS
    )
    kube_api_qps: float = option(5.0, FLOAT, "Requests to the API server per second.", ignored=FEW_REQUESTS)
    config_sync_period_seconds: float = option(
        900.0, DURATION, "Time between two full reads of the API objects.", check=positive, ignored=NO_RESYNC
    )
    healthz_port: int = option(
        HEALTHZ_PORT,
        INT,
        "Deprecated: use --healthz-bind-address.",
        check=within(0, 65535),
        ignored=ZERO_ONLY.format("healthz"),
    )
    metrics_port: int = option(
        METRICS_PORT,
        INT,
        "Deprecated: use --metrics-bind-address.",
        check=within(0, 65535),
        ignored=ZERO_ONLY.format("metrics"),
    )
    profiling: bool = option(False, SWITCH, "Serve profiles beside the metrics.", ignored=NO_PROFILES)
    show_hidden_metrics_for_version: str = option(
        "", TEXT, "Show the metrics that this version hid.", ignored=NO_HIDDEN
    )
    boot_id_file: str = option(
        "/proc/sys/kernel/random/boot_id", TEXT, "Files to look for a boot id in.", ignored=NO_MACHINE
    )
    machine_id_file: str = option(
        "/etc/machine-id,/var/lib/dbus/machine-id", TEXT, "Files to look for a machine id in.", ignored=NO_MACHINE
    )
    vmodule: str = option("", VMODULE, "Log level of single source files.", ignored=KLOG)
    log_flush_frequency_seconds: float = option(5.0, DURATION, "Time between two flushes of the log.", ignored=KLOG)
    log_text_split_stream: bool = option(
        False, SWITCH, "Write errors to standard error and other messages to standard output.", ignored=KLOG
    )
    log_text_info_buffer_size: str = option("0", TEXT, "Bytes to buffer.", ignored=KLOG)
    log_json_split_stream: bool = option(False, SWITCH, "Same as --log-text-split-stream, for JSON.", ignored=KLOG)
    log_json_info_buffer_size: str = option("0", TEXT, "Bytes to buffer.", ignored=KLOG)
    logtostderr: bool = option(True, SWITCH, "Log to standard error.", ignored=KLOG)
    alsologtostderr: bool = option(False, SWITCH, "Log to standard error as well as to files.", ignored=KLOG)
    log_dir: str = option("", PATH, "Directory for log files.", ignored=KLOG)
    log_file: str = option("", PATH, "Log file.", ignored=KLOG)
    log_file_max_size: int = option(1800, COUNT, "Largest size of a log file in megabytes.", ignored=KLOG)
    one_output: bool = option(False, SWITCH, "Write each line to one log file only.", ignored=KLOG)
    skip_headers: bool = option(False, SWITCH, "Omit the header of log lines.", ignored=KLOG)
    skip_log_headers: bool = option(False, SWITCH, "Omit the header of log files.", ignored=KLOG)
    stderrthreshold: str = option("2", TEXT, "Lowest level that is written to standard error.", ignored=KLOG)
    add_dir_header: bool = option(False, SWITCH, "Add the directory to log lines.", ignored=KLOG)
    log_backtrace_at: str = option("", TEXT, "Source line that logs a stack trace.", ignored=KLOG)
