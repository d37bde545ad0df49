/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Stands in for a daemon: started by its unit file, in its place, it tries what the sandbox is to
 * forbid, and prints one line for each attempt: "PROBE ok|BAD DIRECTIVE WHAT: OUTCOME".
 */
#define _GNU_SOURCE
#include "CAspenSystem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void report(int held, const char *directive, const char *what, const char *outcome) {
    printf("PROBE %s %s %s: %s\n", held ? "ok" : "BAD", directive, what, outcome);
    fflush(stdout);
}

/* The attempt must have failed. */
static void refused(const char *directive, const char *what, long result) {
    report(result < 0, directive, what, result < 0 ? strerror(errno) : "succeeded");
}

static void must(const char *directive, const char *what, int is) {
    report(is, directive, what, is ? "as it should be" : "NOT so");
}

static char state[512]; /* empty: it has no state directory, only a /tmp of its own */
static int is_egress;    /* may open sockets to the world, and nothing else at all */
static int outside;

static int visit(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)ftw;
    if (strncmp(path, "/proc", 5) == 0 && (path[5] == 0 || path[5] == '/')) return FTW_SKIP_SUBTREE;
    if (strcmp(path, state) == 0) return FTW_SKIP_SUBTREE;
    if (!state[0] && !is_egress && (strcmp(path, "/tmp") == 0 || strcmp(path, "/var/tmp") == 0))
        return FTW_SKIP_SUBTREE;
    if (type == FTW_D && access(path, W_OK) == 0) {
        char name[4096];
        snprintf(name, sizeof name, "%s/.probe", path);
        int fd = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        if (fd >= 0) {
            report(0, "ProtectSystem", path, "a file could be created");
            unlink(name);
            close(fd);
            outside++;
        }
    } else if (type == FTW_F && S_ISREG(st->st_mode) && access(path, W_OK) == 0) {
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd >= 0) {
            report(0, "ProtectSystem", path, "could be opened for writing");
            close(fd);
            outside++;
        }
    }
    return FTW_CONTINUE;
}

/* How a child ends that tries to run `path` or `fd`. */
static int run(const char *path, int fd) {
    pid_t child = fork();
    if (child == 0) {
        char *none[] = {"probe-child", NULL};
        if (path) execve(path, none, NULL); else fexecve(fd, none, none + 1);
        _exit(errno == EACCES ? 113 : errno == EPERM ? 111 : 112);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void exec_probes(void) {
    int in = open("/bin/true", O_RDONLY | O_CLOEXEC);
    int out = open("copy", O_CREAT | O_RDWR | O_TRUNC, 0700);
    char buffer[65536];
    for (ssize_t n; (n = read(in, buffer, sizeof buffer)) > 0;)
        if (write(out, buffer, n) != n) break;
    close(out);
    char path[600];
    snprintf(path, sizeof path, "%s/copy", state);
    int code = run(path, -1);
    report(code == 113, "NoExecPaths", "running a copy in the state directory",
           code == 113 ? "refused" : "NOT refused");
    in = open("copy", O_RDONLY);
    void *code_page = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, in, 0);
    refused("NoExecPaths", "loading code from the state directory", code_page == MAP_FAILED ? -1 : 0);
    unlink("copy");
    /* What every daemon does first of all. */
    must("forbid_exec", "the program can bind itself", aspen_forbid_exec() == 0);
    code = run("/bin/true", -1);
    report(code == 111, "forbid_exec", "running /bin/true", code == 111 ? "refused" : "NOT refused");
    in = open("/bin/true", O_RDONLY | O_CLOEXEC);
    code = run(NULL, in);
    report(code == 111, "forbid_exec", "running an open file", code == 111 ? "refused" : "NOT refused");
}

static char *field(const char *name) {
    static char value[256];
    char line[512];
    FILE *f = fopen("/proc/self/status", "re");
    value[0] = 0;
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
            sscanf(line + strlen(name) + 1, " %255[^\n]", value);
    if (f) fclose(f);
    return value;
}

/* How a child ends that asks for the niceness: 0 if it has it, else errno. */
static int nice_child(int niceness) {
    pid_t child = fork();
    if (child == 0) {
        if (setpriority(PRIO_PROCESS, 0, niceness) < 0) _exit(errno);
        _exit(getpriority(PRIO_PROCESS, 0) == niceness ? 0 : 255);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* aspend-raft alone may step back behind others; nobody may push ahead. */
static void priority_probes(void) {
    int is_raft = strcmp(state, "/var/lib/aspen/raft") == 0;
    int back = nice_child(10), ahead = nice_child(-1);
    report(is_raft ? back == 0 : back == EPERM, "SystemCallFilter", "a lower priority",
           back == 0 ? "taken" : strerror(back));
    report(ahead == EPERM || ahead == EACCES, "SystemCallFilter", "a higher priority",
           ahead == 0 ? "taken" : strerror(ahead));
}

static void privilege_probes(void) {
    must("User", "not root", geteuid() != 0 && getuid() != 0 && getgid() != 0);
    must("CapabilityBoundingSet", "bounding set empty", strtoull(field("CapBnd"), 0, 16) == 0);
    must("AmbientCapabilities", "no capabilities",
         strtoull(field("CapEff"), 0, 16) == 0 && strtoull(field("CapAmb"), 0, 16) == 0);
    must("NoNewPrivileges", "set", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    must("SecureBits", "noroot-locked", (prctl(PR_GET_SECUREBITS) & 2) != 0);
    refused("SystemCallFilter", "setuid(0) (@setuid)", syscall(SYS_setuid, 0));
    refused("SystemCallFilter", "setgroups (@setuid)", syscall(SYS_setgroups, 0, NULL));
    refused("SystemCallFilter", "mount (@mount)", mount("none", "/", "tmpfs", 0, NULL));
    refused("SystemCallFilter", "chroot (@mount)", chroot("/"));
    refused("SystemCallFilter", "ptrace (@debug)", ptrace(PTRACE_TRACEME, 0, 0, 0));
    refused("SystemCallFilter", "reboot (@reboot)", syscall(SYS_reboot, 0, 0, 0, NULL));
    refused("SystemCallFilter", "swapon (@swap)", swapon("/none", 0));
    refused("SystemCallFilter", "bpf (@privileged)", syscall(SYS_bpf, 0, NULL, 0));
    refused("SystemCallFilter", "perf_event_open (@debug)", syscall(SYS_perf_event_open, 0, 0, 0, 0, 0));
    refused("SystemCallFilter", "userfaultfd", syscall(SYS_userfaultfd, 0));
    refused("SystemCallFilter", "io_uring_setup", syscall(SYS_io_uring_setup, 1, NULL));
    refused("SystemCallFilter", "ioprio_set (@resources)", syscall(SYS_ioprio_set, 1, 0, 3 << 13));
    priority_probes();
    refused("SystemCallFilter", "process_vm_readv", syscall(SYS_process_vm_readv, getpid(), 0, 0, 0, 0, 0));
    errno = 0;
    refused("SystemCallErrorNumber", "the filter answers EPERM",
            swapon("/none", 0) < 0 && errno == EPERM ? -1 : 0);
    refused("KeyringMode", "add_key (@keyring)", syscall(SYS_add_key, "user", "x", "x", 1, -1));
    struct sched_param high = {.sched_priority = 1};
    refused("RestrictRealtime", "SCHED_FIFO", sched_setscheduler(0, SCHED_FIFO, &high));
    refused("RestrictNamespaces", "a user namespace", unshare(CLONE_NEWUSER));
    refused("RestrictNamespaces", "a network namespace", unshare(CLONE_NEWNET));
    refused("LockPersonality", "personality(PER_LINUX32)", personality(PER_LINUX32));
    struct timespec ts = {.tv_sec = 1};
    refused("ProtectClock", "clock_settime", clock_settime(CLOCK_REALTIME, &ts));
    struct timex tx = {.modes = ADJ_FREQUENCY};
    refused("ProtectClock", "adjtimex", adjtimex(&tx));
    refused("ProtectHostname", "sethostname", sethostname("x", 1));
    refused("ProtectKernelModules", "init_module", syscall(SYS_init_module, NULL, 0, ""));
    refused("ProtectKernelLogs", "reading /dev/kmsg", open("/dev/kmsg", O_RDONLY));
    refused("ProtectKernelLogs", "syslog(2)", syscall(SYS_syslog, 10, NULL, 0));
}

#if defined(__x86_64__)
static void architecture_probe(void) {
    pid_t child = fork();
    if (child == 0) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "0"(20L) : "memory"); /* i386 getpid */
        _exit(result == getpid() ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    must("SystemCallArchitectures", "a 32-bit system call fails",
         !(WIFEXITED(status) && WEXITSTATUS(status) == 0));
}
#else
static void architecture_probe(void) {}
#endif

static void memory_probes(void) {
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    refused("MemoryDenyWriteExecute", "mapping writable and executable", page == MAP_FAILED ? -1 : 0);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    refused("MemoryDenyWriteExecute", "making memory executable", mprotect(page, 4096, PROT_READ | PROT_EXEC));
    refused("PrivateIPC", "shared memory of System V", shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600));
    refused("RemoveIPC", "a message queue", mq_open("/probe", O_CREAT | O_RDWR, 0600, NULL));
    struct rlimit core;
    getrlimit(RLIMIT_CORE, &core);
    must("LimitCORE", "no core dumps", core.rlim_max == 0);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    if (state[0]) must("LimitNOFILE", "8192 descriptors", files.rlim_max == 8192);
    if (is_egress) must("LimitNOFILE", "64 descriptors", files.rlim_max == 64);
}

/* As many children as it may have, none of which does anything. */
static void task_probe(void) {
    pid_t children[256];
    int count = 0;
    while (count < 256 && (children[count] = fork()) >= 0) {
        if (children[count] == 0) for (;;) pause();
        count++;
    }
    char text[64];
    snprintf(text, sizeof text, "%d children", count);
    report(count > (is_egress ? 0 : 8) && count < (is_egress ? 8 : 64), "TasksMax", "starting tasks without end", text);
    for (int i = 0; i < count; i++) kill(children[i], SIGKILL);
    for (int i = 0; i < count; i++) waitpid(children[i], NULL, 0);
}

/* The unit is given 64 MB for this, by a drop-in: a machine of the test may have less than the unit's. */
static void amount_probe(void) {
    pid_t child = fork();
    if (child == 0) {
        size_t bytes = 256 << 20;
        char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) _exit(2);
        for (size_t i = 0; i < bytes; i += 4096) memory[i] = 1;
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    report(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "MemoryMax", "taking 256 MB",
           WIFSIGNALED(status) ? "killed" : "got them");
}

/* In a unit that lets it open IP sockets and see the network: still nothing gets out. */
static void address_probe(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    must("IPAddressDeny", "an IPv4 socket, for this probe alone", fd >= 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    const in_addr_t places[] = {INADDR_LOOPBACK, 0x0a4d00fe /* 10.77.0.254, the bed */};
    for (int i = 0; i < 2; i++) {
        to.sin_addr.s_addr = htonl(places[i]);
        ssize_t sent = sendto(fd, "x", 1, 0, (void *)&to, sizeof to);
        report(sent < 0 && errno == EPERM, "IPAddressDeny", i ? "the neighbour" : "loopback",
               sent < 0 ? strerror(errno) : "succeeded");
    }
    close(fd);
}

static void egress_network_probes(void) {
    must("RestrictAddressFamilies", "IPv4 is allowed",
         socket(AF_INET, SOCK_DGRAM, 0) >= 0 && socket(AF_INET, SOCK_STREAM, 0) >= 0);
    refused("RestrictAddressFamilies", "a raw socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    refused("RestrictAddressFamilies", "a Unix socket", socket(AF_UNIX, SOCK_STREAM, 0));
    refused("RestrictAddressFamilies", "a netlink socket", socket(AF_NETLINK, SOCK_RAW, 0));
    refused("RestrictAddressFamilies", "a packet socket", socket(AF_PACKET, SOCK_RAW, 0));
    refused("RestrictAddressFamilies", "a vsock socket", socket(AF_VSOCK, SOCK_STREAM, 0));
}

static void network_probes(void) {
    refused("RestrictAddressFamilies", "an IPv4 socket", socket(AF_INET, SOCK_DGRAM, 0));
    refused("RestrictAddressFamilies", "an IPv4 stream", socket(AF_INET, SOCK_STREAM, 0));
    refused("RestrictAddressFamilies", "an IPv6 socket", socket(AF_INET6, SOCK_DGRAM, 0));
    refused("RestrictAddressFamilies", "a netlink socket", socket(AF_NETLINK, SOCK_RAW, 0));
    refused("RestrictAddressFamilies", "a packet socket", socket(AF_PACKET, SOCK_RAW, 0));
    refused("RestrictAddressFamilies", "a vsock socket", socket(AF_VSOCK, SOCK_STREAM, 0));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    must("RestrictAddressFamilies", "a Unix socket is allowed", fd >= 0);
    int interfaces = 0;
    FILE *f = fopen("/proc/self/net/dev", "re");
    char line[512];
    while (f && fgets(line, sizeof line, f)) interfaces += strchr(line, ':') != NULL;
    must("PrivateNetwork", "no interface but loopback", interfaces == 1);
    struct sockaddr_un bus = {.sun_family = AF_UNIX, .sun_path = "/run/dbus/system_bus_socket"};
    refused("InaccessiblePaths", "the system bus", connect(fd, (void *)&bus, sizeof bus));
}

static void state_probes(void) {
    int fd = open("probe", O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    struct stat st;
    must("StateDirectory", "the state directory can be written", fd >= 0);
    fstat(fd, &st);
    must("UMask", "077", (st.st_mode & 077) == 0);
    stat(".", &st);
    must("StateDirectoryMode", "0700", (st.st_mode & 0777) == 0700);
    refused("RestrictSUIDSGID", "a set-user-id file", fchmod(fd, 04700));
    unlink("probe");
}

/* A unit without a state of its own: its /tmp is nobody else's, and nothing in it is left. */
static void temporary_probes(void) {
    int entries = 0;
    DIR *d = opendir("/tmp");
    for (struct dirent *e; d && (e = readdir(d));) entries += e->d_name[0] != '.';
    must("PrivateTmp", "/tmp is empty", d != NULL && entries == 0);
    int fd = open("/tmp/probe", O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    struct stat st;
    must("UMask", "077", fstat(fd, &st) == 0 && (st.st_mode & 077) == 0);
    refused("RestrictSUIDSGID", "a set-user-id file", fchmod(fd, 04700));
    must("DynamicUser", "a user of the moment", geteuid() >= 61184 && geteuid() <= 65519);
    must("PrivateUsers", "other users are nobody",
         stat("/var/lib/aspen/net", &st) == 0 && st.st_uid == 65534);
}

/* It has no place to write at all: the file is one in memory. */
static void egress_file_probes(void) {
    must("UMask", "077", umask(077) == 077);
    int fd = memfd_create("probe", MFD_CLOEXEC);
    refused("RestrictSUIDSGID", "a set-user-id file", fchmod(fd, 04700));
    close(fd);
}

static void file_probes(void) {
    nftw("/", visit, 64, FTW_PHYS | FTW_ACTIONRETVAL);
    must("ProtectSystem", "nothing outside the state directory can be written", outside == 0);
    if (state[0]) state_probes();
    else if (is_egress) egress_file_probes();
    else temporary_probes();
    const char *closed[] = {"/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/user",
                            "/etc/aspen/credentials", "/var/lib/aspen/net", "/var/lib/aspen/raft"};
    for (size_t i = 0; i < sizeof closed / sizeof closed[0]; i++) {
        if (strcmp(closed[i], state) == 0 || (!state[0] && !is_egress && i < 4)) continue;
        DIR *d = opendir(closed[i]);
        int entries = 0;
        for (struct dirent *e; d && (e = readdir(d));) entries += e->d_name[0] != '.';
        report(d == NULL || (strncmp(closed[i], "/run", 4) == 0 && entries == 0),
               i < 2 ? "PrivateTmp" : "InaccessiblePaths", closed[i],
               d ? "can be listed" : strerror(errno));
    }
    int entries = 0;
    DIR *home = opendir("/root");
    for (struct dirent *e; home && (e = readdir(home));) entries += e->d_name[0] != '.';
    must("ProtectHome", "/root is empty or closed", entries == 0);
    refused("ProtectKernelTunables", "writing /proc/sys/kernel/hostname",
            open("/proc/sys/kernel/hostname", O_WRONLY));
    refused("ProtectControlGroups", "a control group", mkdir("/sys/fs/cgroup/systemd/probe", 0700));
    refused("ProcSubset", "/proc/meminfo", open("/proc/meminfo", O_RDONLY));
    refused("PrivateDevices", "/dev/mem or a disk", open("/dev/mem", O_RDONLY));
    refused("DevicePolicy", "a device node",
            mknod("device", S_IFBLK | 0600, makedev(254, 0)));
    int others = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *e; proc && (e = readdir(proc));)
        if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && atoi(e->d_name) != getpid()) others++;
    must("ProtectProc", "no other process is seen", others == 0);
    refused("User", "signalling PID 1", kill(1, 0));
    refused("User", "/etc/shadow", open("/etc/shadow", O_RDONLY));
}

/* The unit names the one program that it may run. */
static void only_program_probes(void) {
    int code = run("/bin/true", -1);
    report(code == 113, "NoExecPaths", "running /bin/true", code == 113 ? "refused" : "NOT refused");
    int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    must("ExecPaths", "its own program could be run", self >= 0 && faccessat(self, "", X_OK, AT_EMPTY_PATH) == 0);
}

int main(void) {
    if (getenv("PROBE_ADDRESSES")) {
        address_probe();
        printf("PROBE end\n");
        return 0;
    }
    const char *own = getenv("STATE_DIRECTORY");
    if (own && !getcwd(state, sizeof state)) return 1;
    is_egress = getenv("PROBE_EGRESS") != NULL;
    privilege_probes();
    architecture_probe();
    memory_probes();
    if (is_egress) egress_network_probes();
    else network_probes();
    file_probes();
    printf("PROBE note filters: %s\n", field("Seccomp_filters"));
    if (own) exec_probes();
    else if (!is_egress) only_program_probes();
    task_probe();
    amount_probe();
    printf("PROBE end\n");
    return 0;
}
