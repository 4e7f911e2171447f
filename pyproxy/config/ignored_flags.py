"""The flags of kube-proxy that pyproxy takes and does not act on, each with the words of the warning it causes.

They are parsed and checked all the same, so that a mistake shows here as it does there. A flag that gets an effect
moves to `config`. ``--cleanup`` and ``--version`` are in neither: they say what to do, not how, and are `cli`'s.
"""

from dataclasses import dataclass

from pyproxy.config.grammar import COUNT, DURATION, FLOAT, GATES, INT, PATH, SWITCH, TEXT
from pyproxy.config.option import not_negative, option, positive, within

HEALTHZ_PORT = 10256
METRICS_PORT = 10249

ZERO_ONLY = "is deprecated: 0 means no server, and any other value nothing beside --{}-bind-address"
NO_PROFILES = "is accepted but not acted on: the profiles are those of a Go program"
NO_GATES = "is accepted but not acted on: pyproxy has no feature gates"
JSON_ONLY = "is accepted but not acted on: pyproxy always asks for JSON"
KLOG = "is accepted but not acted on: it configures klog, and pyproxy logs to standard error only"
FEW_REQUESTS = "is accepted but not acted on: pyproxy opens one watch for each kind of object, and asks for no more"
NO_RESYNC = "is accepted but not acted on: a watch tells every change, and one that ends is followed by the next"
NO_HIDDEN = "is accepted but not acted on: pyproxy hides no metric"
NO_MACHINE = "is accepted but not acted on: kube-proxy does not act on it either"


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoredFlags:
    """The fields of Config that change nothing."""

    feature_gates: tuple[tuple[str, bool], ...] = option((), GATES, "Feature gates of Kubernetes.", ignored=NO_GATES)
    kube_api_content_type: str = option(
        "application/vnd.kubernetes.protobuf", TEXT, "Encoding of API objects.", ignored=JSON_ONLY
    )
    kube_api_burst: int = option(
        10, INT, "Requests to the API server in a burst.", check=not_negative, ignored=FEW_REQUESTS
    )
    kube_api_qps: float = option(5.0, FLOAT, "Requests to the API server in a second.", ignored=FEW_REQUESTS)
    config_sync_period_seconds: float = option(
        900.0, DURATION, "Time between two full reads of the API server's objects.", check=positive, ignored=NO_RESYNC
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
    vmodule: str = option("", TEXT, "Log level of single files.", ignored=KLOG)
    log_flush_frequency_seconds: float = option(5.0, DURATION, "Time between two flushes of the log.", ignored=KLOG)
    log_text_split_stream: bool = option(
        False, SWITCH, "Write errors to standard error and the rest to standard output.", ignored=KLOG
    )
    log_text_info_buffer_size: str = option("0", TEXT, "Bytes to buffer.", ignored=KLOG)
    log_json_split_stream: bool = option(False, SWITCH, "As --log-text-split-stream, for JSON.", ignored=KLOG)
    log_json_info_buffer_size: str = option("0", TEXT, "Bytes to buffer.", ignored=KLOG)
    logtostderr: bool = option(True, SWITCH, "Log to standard error.", ignored=KLOG)
    alsologtostderr: bool = option(False, SWITCH, "Log to standard error as well as to files.", ignored=KLOG)
    log_dir: str = option("", PATH, "Directory for log files.", ignored=KLOG)
    log_file: str = option("", PATH, "Log file.", ignored=KLOG)
    log_file_max_size: int = option(1800, COUNT, "Size of a log file in megabytes.", ignored=KLOG)
    one_output: bool = option(False, SWITCH, "Write each line to one log file only.", ignored=KLOG)
    skip_headers: bool = option(False, SWITCH, "Leave out the beginning of log lines.", ignored=KLOG)
    skip_log_headers: bool = option(False, SWITCH, "Leave out the beginning of log files.", ignored=KLOG)
    stderrthreshold: str = option("2", TEXT, "Lowest level that goes to standard error.", ignored=KLOG)
    add_dir_header: bool = option(False, SWITCH, "Add the directory to log lines.", ignored=KLOG)
    log_backtrace_at: str = option("", TEXT, "Line of the source that logs a stack trace.", ignored=KLOG)
