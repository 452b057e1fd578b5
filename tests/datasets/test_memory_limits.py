"""Free memory within the control groups of a process, read from made-up trees of /proc and /sys."""

import pytest

from datasets.memory import free_memory

SYSTEM = 8_000 * 1024


def put(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return root


@pytest.fixture
def root(tmp_path):
    return put(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    8000 kB\n"})


V2_MOUNT = "30 23 0:26 {inside} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 {inside} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 {inside} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def v2(folder, limit, used, cache=(0, 0), high="max"):
    base = f"sys/fs/cgroup/{folder}".rstrip("/")
    return {
        f"{base}/memory.max": limit, f"{base}/memory.high": high, f"{base}/memory.current": used,
        f"{base}/memory.stat": f"anon 5\nfile {sum(cache) + 70}\nshmem 70\ninactive_file {cache[0]}\nactive_file {cache[1]}\n",
    }  # fmt: skip


def v1(folder, limit, used, cache=(0, 0)):
    base = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    return {
        f"{base}/memory.limit_in_bytes": limit, f"{base}/memory.usage_in_bytes": used,
        f"{base}/memory.stat": f"inactive_file 1\nactive_file 1\ntotal_inactive_file {cache[0]}\ntotal_active_file {cache[1]}\n",
    }  # fmt: skip


def test_without_limits_it_is_what_the_system_has(root):
    assert free_memory(root) == SYSTEM
    put(root, {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2_MOUNT.format(inside="/")})
    assert free_memory(root) == SYSTEM
    put(root, {"proc/self/cgroup": "rubbish\n", "proc/self/mountinfo": "rubbish\n1 2 - cgroup2\n"})
    assert free_memory(root) == SYSTEM


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        (v2("slurm/job/step", 5000, 3000), 2000),  # its own
        (v2("slurm/job", 5000, 3000), 2000),  # one above
        (v2("", 5000, 3000), 2000),  # that of the container
        (v2("slurm/job", 5000, 3000) | v2("slurm/job/step", 9000, 2000) | v2("slurm", 6000, 5500), 500),  # the least
        (v2("slurm/other", 5000, 4999), SYSTEM),  # another one's
        (v2("slurm/job", 5000, 4800, (1500, 1000)), 2700),  # page cache is given back
        (v2("slurm/job", 5000, 5200), 0),
        (v2("slurm/job", 5000, 1000, (1500, 1000)), 5000),
        (v2("slurm/job", "max", 3000, high=4000), 1000),  # above it, everything stands still
    ],
)
def test_limits_of_version_2(root, groups, free):
    put(root, {"proc/self/cgroup": "0::/slurm/job/step\n", "proc/self/mountinfo": V2_MOUNT.format(inside="/")} | groups)
    assert free_memory(root) == free


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        (v1("slurm/job/step", 5000, 3000), 2000), (v1("slurm", 5000, 3000), 2000),
        (v1("slurm/job", 5000, 4800, (1500, 1000)), 2700),
        (v1("", 9223372036854771712, 3000) | v1("slurm/job", 9223372036854771712, 10), SYSTEM),
    ],
)  # fmt: skip
def test_limits_of_version_1(root, groups, free):
    own = "5:cpu,cpuacct:/elsewhere\n4:name=systemd:/x\n3:hugetlb,memory:/slurm/job/step\n0::/y\n"
    put(root, {"proc/self/cgroup": own, "proc/self/mountinfo": V1_MOUNT.format(inside="/")} | groups)
    assert free_memory(root) == free


@pytest.mark.parametrize(
    ("own", "inside"),
    [("/docker/1", "/docker/1"), ("/", "/"), ("/../..", "/"), ("/docker/1", "/docker/2"), ("/docker/1", "/docker/1/a")],
)
def test_a_container_sees_its_own_group_as_the_root(root, own, inside):
    files = {"proc/self/cgroup": f"0::{own}\n", "proc/self/mountinfo": V2_MOUNT.format(inside=inside)}
    put(root, files | v2("", 5000, 3000))
    assert free_memory(root) == 2000


def test_mounts_with_blanks_in_their_names(root):
    mount = "30 23 0:26 / /a\\040b rw - cgroup2 cgroup2 rw\n"
    groups = {"a b/c:d/memory.max": 700, "a b/c:d/memory.current": 100}
    put(root, {"proc/self/cgroup": "0::/c:d\n", "proc/self/mountinfo": mount} | groups)
    assert free_memory(root) == 600
