/*
 * smtpload: SMTP load from many client addresses, one thread, one epoll.
 *
 *   smtpload --port 2525 --mode reused --sessions 50 --seconds 2
 *   smtpload --port 2525 --idle 10000          open, read the greeting, hold
 *
 * What smtp-source can't do and a policy server must be measured with: each
 * connection comes from the next of --addresses addresses in 127.1.0.0/16,
 * recipients come from a file, and in the pipelined mode a transaction is two
 * writes: the body of one message carries MAIL, RCPT and DATA of the next.
 *
 * Modes
 *   reused     many messages a connection, each command waits for its reply
 *   new        connect, EHLO, one message, QUIT
 *   pipelined  reused, with MAIL RCPT DATA in one write behind the last body
 *
 * The result is one JSON object on stdout.  latency_us counts from the moment
 * MAIL is written (new: from connect) to the reply to the final dot; dot_p50_us
 * and so on count from the moment the body and its dot are written.  With
 * --idle or --half one line {"ready": N, ...} says that all N stand where they
 * are held; they are closed when stdin ends.
 *
 * Exit: 0; 1 when any message was refused or any connection lost; 2 usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum mode { REUSED, NEW, PIPELINED, IDLE, HALF };

/* What the next complete reply answers. */
enum step { GREETING, EHLO, MAIL, RCPT, DATA, DOT, QUIT, HELD };

static const char *const mode_names[] = {"reused", "new", "pipelined", "idle", "half"};
static const char *const step_names[] = {"greeting", "EHLO", "MAIL", "RCPT", "DATA", "dot", "QUIT", "held"};

/* At most this many connections are being opened at a time: a listen queue is 128 to 4096 long. */
#define OPENING_MAX 200
#define ERRORS_MAX 1000
#define STALL_S 30
#define COMMANDS_MAX 2048

struct session {
    int fd;              /* -1: closed */
    enum step step;
    bool counted_opening;
    int column;          /* of the reply line being read */
    int code;
    char separator;
    unsigned messages;   /* of this connection */
    uint64_t begun_ns;   /* of the message whose dot comes next */
    uint64_t begun_next_ns; /* pipelined: of the one behind it */
    uint64_t dot_ns;     /* when its body was written */
    struct iovec out[2]; /* not yet written: the body, then commands */
    char commands[COMMANDS_MAX];
};

static struct {
    enum mode mode;
    struct sockaddr_in server;
    unsigned sessions;
    unsigned addresses;
    unsigned per_connection;
    size_t size_bytes;
    double seconds;
    const char *sender;
    const char *pattern;
} options = {
    .mode = REUSED, .sessions = 50, .addresses = 10000, .size_bytes = 4096, .seconds = 2.0,
    .sender = "sender@load.example", .pattern = "user%u@example.org",
};

static struct session *sessions;
static int epoll_fd;
static unsigned opening, unopened, held, open_sessions;
static uint64_t connections, messages, errors;
static uint64_t deadline_ns;
static char first_error[256];
static char *body;
static size_t body_bytes;
static char **recipients;
static unsigned recipient_count, recipient_next;
/* Of each message, from its beginning and from its dot. */
static uint32_t *latencies_us, *dots_us;
static size_t latency_count, latency_room;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *must(void *memory)
{
    if (memory == NULL)
        die("out of memory");
    return memory;
}

/* A message of size_bytes octets, CRLF lines of 78, no line begins with a dot; then the final dot. */
static void make_body(void)
{
    const char *header = "From: <sender@load.example>\r\nTo: <user@example.org>\r\nSubject: load\r\n"
                         "Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <load@load.example>\r\n\r\n";
    size_t at = strlen(header), column = 0;

    body = must(malloc((options.size_bytes > at ? options.size_bytes : at) + 8));
    memcpy(body, header, at);
    while (at + 2 < options.size_bytes) {
        if (column == 76) {
            memcpy(body + at, "\r\n", 2);
            at += 2;
            column = 0;
        } else {
            body[at++] = (char)('a' + column++ % 26);
        }
    }
    /* A line end may stand half before the last two octets: end on a whole one. */
    if (body[at - 1] == '\r')
        body[at - 1] = 'x';
    memcpy(body + at, "\r\n.\r\n", 5);
    body_bytes = at + 5;
}

static void read_recipients(const char *name)
{
    FILE *file = fopen(name, "r");
    char *line = NULL;
    size_t room = 0, have = 0;
    ssize_t n;

    if (file == NULL)
        die(name);
    while ((n = getline(&line, &room, file)) != -1) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            line[--n] = 0;
        if (n == 0 || line[0] == '#')
            continue;
        if (n > COMMANDS_MAX / 4) {
            fprintf(stderr, "%s: a line of %zd octets\n", name, n);
            exit(2);
        }
        if (recipient_count == have) {
            have = have ? 2 * have : 1024;
            recipients = must(realloc(recipients, have * sizeof *recipients));
        }
        recipients[recipient_count++] = must(strdup(line));
    }
    free(line);
    fclose(file);
}

static void record_latency(uint64_t from_ns, uint64_t dot_ns, uint64_t to_ns)
{
    if (latency_count == latency_room) {
        latency_room = latency_room ? 2 * latency_room : 65536;
        latencies_us = must(realloc(latencies_us, latency_room * sizeof *latencies_us));
        dots_us = must(realloc(dots_us, latency_room * sizeof *dots_us));
    }
    dots_us[latency_count] = (uint32_t)((to_ns - dot_ns) / 1000);
    latencies_us[latency_count++] = (uint32_t)((to_ns - from_ns) / 1000);
}

static void complain(const struct session *s, const char *what)
{
    if (errors++ == 0)
        snprintf(first_error, sizeof first_error, "%s at %s", what, step_names[s->step]);
}

static void close_session(struct session *s)
{
    if (s->counted_opening) {
        s->counted_opening = false;
        opening--;
    }
    if (s->step == HELD)
        held--;
    close(s->fd);
    s->fd = -1;
    open_sessions--;
}

/* Write what is pending.  False: the connection is lost. */
static bool flush_out(struct session *s)
{
    while (s->out[0].iov_len + s->out[1].iov_len > 0) {
        struct msghdr message = {.msg_iov = s->out, .msg_iovlen = 2};
        ssize_t n = sendmsg(s->fd, &message, MSG_NOSIGNAL);

        if (n < 0)
            return errno == EAGAIN;
        for (int i = 0; i < 2; i++) {
            size_t part = (size_t)n < s->out[i].iov_len ? (size_t)n : s->out[i].iov_len;
            s->out[i].iov_base = (char *)s->out[i].iov_base + part;
            s->out[i].iov_len -= part;
            n -= (ssize_t)part;
        }
    }
    return true;
}

static void say(struct session *s, size_t from_body, size_t commands)
{
    s->out[0] = (struct iovec){.iov_base = body, .iov_len = from_body};
    s->out[1] = (struct iovec){.iov_base = s->commands, .iov_len = commands};
}

static size_t write_mail(struct session *s, size_t at)
{
    return at + (size_t)snprintf(s->commands + at, sizeof s->commands - at, "MAIL FROM:<%s>\r\n", options.sender);
}

static size_t write_rcpt(struct session *s, size_t at)
{
    char made[256];
    const char *recipient = made;
    unsigned k = recipient_next++;

    if (recipient_count > 0)
        /* A stride that has no common factor with the usual counts: neighbours in the file are no neighbours here. */
        recipient = recipients[(uint64_t)k * 7919 % recipient_count];
    else
        snprintf(made, sizeof made, options.pattern, k % 100000);
    return at + (size_t)snprintf(s->commands + at, sizeof s->commands - at, "RCPT TO:<%s>\r\n", recipient);
}

static size_t write_line(struct session *s, size_t at, const char *line)
{
    size_t n = strlen(line);
    memcpy(s->commands + at, line, n);
    return at + n;
}

static bool more_messages(const struct session *s, uint64_t now)
{
    return now < deadline_ns && (options.per_connection == 0 || s->messages < options.per_connection);
}

static void begin_transaction(struct session *s, uint64_t now)
{
    size_t n = write_mail(s, 0);
    if (options.mode != NEW)
        s->begun_ns = now;
    if (options.mode == PIPELINED) {
        n = write_rcpt(s, n);
        n = write_line(s, n, "DATA\r\n");
    }
    s->step = MAIL;
    say(s, 0, n);
}

static void hold(struct session *s)
{
    s->step = HELD;
    s->counted_opening = false;
    opening--;
    held++;
}

/* One reply is complete: what comes next.  False: this connection is over. */
static bool replied(struct session *s)
{
    uint64_t now = now_ns();
    int wanted = s->step == GREETING ? 220 : s->step == DATA ? 354 : s->step == QUIT ? 221 : 250;

    if (s->code != wanted) {
        char what[32];
        snprintf(what, sizeof what, "%d", s->code);
        complain(s, what);
        return false;
    }
    switch (s->step) {
    case GREETING:
        if (options.mode == IDLE) {
            hold(s);
            return true;
        }
        s->step = EHLO;
        say(s, 0, write_line(s, 0, "EHLO load.example\r\n"));
        break;
    case EHLO:
        if (options.mode != HALF) {
            s->counted_opening = false;
            opening--;
        }
        begin_transaction(s, now);
        break;
    case MAIL:
        s->step = RCPT;
        if (options.mode != PIPELINED)
            say(s, 0, write_rcpt(s, 0));
        break;
    case RCPT:
        s->step = DATA;
        if (options.mode != PIPELINED)
            say(s, 0, write_line(s, 0, "DATA\r\n"));
        break;
    case DATA:
        if (options.mode == HALF) {
            say(s, body_bytes / 2, 0);
            if (!flush_out(s))
                return false;
            hold(s);
            return true;
        }
        s->step = DOT;
        s->dot_ns = now;
        s->messages++;
        size_t n = 0;
        s->begun_next_ns = 0;
        if (options.mode == PIPELINED && more_messages(s, now)) {
            s->begun_next_ns = now;
            n = write_mail(s, 0);
            n = write_rcpt(s, n);
            n = write_line(s, n, "DATA\r\n");
        }
        say(s, body_bytes, n);
        break;
    case DOT:
        messages++;
        record_latency(s->begun_ns, s->dot_ns, now);
        if (s->begun_next_ns != 0) {
            s->begun_ns = s->begun_next_ns;
            s->step = MAIL;
        } else if (options.mode == REUSED && more_messages(s, now)) {
            begin_transaction(s, now);
        } else {
            s->step = QUIT;
            say(s, 0, write_line(s, 0, "QUIT\r\n"));
        }
        break;
    case QUIT:
    case HELD:
        return false;
    }
    return true;
}

/* False: the connection is over. */
static bool receive(struct session *s)
{
    char buffer[16384];

    for (;;) {
        ssize_t n = recv(s->fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n <= 0) {
            complain(s, n == 0 ? "closed by the server" : strerror(errno));
            return false;
        }
        for (ssize_t i = 0; i < n; i++) {
            char c = buffer[i];
            if (c == '\n') {
                bool complete = s->separator != '-';
                s->column = 0;
                if (complete && !replied(s))
                    return false;
                s->code = 0;
                s->separator = ' ';
            } else {
                if (s->column < 3)
                    s->code = s->code * 10 + (c - '0');
                else if (s->column == 3)
                    s->separator = c;
                s->column++;
            }
        }
        if (!flush_out(s)) {
            complain(s, strerror(errno));
            return false;
        }
        if ((size_t)n < sizeof buffer)
            return true; /* edge-triggered: a short read has emptied the socket */
    }
}

static void open_session(struct session *s)
{
    const int on = 1;
    struct sockaddr_in client = {.sin_family = AF_INET};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
    uint32_t k = (uint32_t)(connections++ % options.addresses);

    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0)
        die("socket");
    client.sin_addr.s_addr = htonl(0x7f010001u + k); /* 127.1.0.1 and on */
    setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(s->fd, (struct sockaddr *)&client, sizeof client) < 0)
        die("bind");
    s->step = GREETING;
    s->column = 0;
    s->code = 0;
    s->separator = ' ';
    s->messages = 0;
    say(s, 0, 0);
    s->begun_ns = now_ns();
    s->counted_opening = true;
    opening++;
    open_sessions++;
    if (connect(s->fd, (struct sockaddr *)&options.server, sizeof options.server) < 0 && errno != EINPROGRESS)
        die("connect");
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, s->fd, &event) < 0)
        die("epoll_ctl");
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t percentile(const uint32_t *sorted, double share)
{
    if (latency_count == 0)
        return 0;
    size_t at = (size_t)(share * (double)(latency_count - 1) + 0.5);
    return sorted[at];
}

static void usage(void)
{
    fprintf(stderr,
            "usage: smtpload --port PORT [--host 127.0.0.1] [--mode reused|new|pipelined] [--sessions 50]\n"
            "                [--seconds 2] [--size 4096] [--addresses 10000] [--per-connection 0]\n"
            "                [--recipients FILE | --pattern user%%u@example.org] [--sender ADDRESS]\n"
            "       smtpload --port PORT --idle N | --half N    hold N connections until stdin ends\n");
    exit(2);
}

static void read_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"host", 1, NULL, 'h'}, {"port", 1, NULL, 'p'}, {"mode", 1, NULL, 'm'}, {"sessions", 1, NULL, 'n'},
        {"seconds", 1, NULL, 't'}, {"size", 1, NULL, 's'}, {"addresses", 1, NULL, 'a'},
        {"per-connection", 1, NULL, 'c'}, {"recipients", 1, NULL, 'r'}, {"pattern", 1, NULL, 'P'},
        {"sender", 1, NULL, 'f'}, {"idle", 1, NULL, 'i'}, {"half", 1, NULL, 'H'}, {NULL, 0, NULL, 0},
    };
    int option;

    options.server.sin_family = AF_INET;
    options.server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'h':
            if (inet_pton(AF_INET, optarg, &options.server.sin_addr) != 1)
                usage();
            break;
        case 'p':
            options.server.sin_port = htons((uint16_t)atoi(optarg));
            break;
        case 'm':
            for (options.mode = REUSED; strcmp(optarg, mode_names[options.mode]) != 0; options.mode++)
                if (options.mode == PIPELINED)
                    usage();
            break;
        case 'n': options.sessions = (unsigned)atoi(optarg); break;
        case 't': options.seconds = atof(optarg); break;
        case 's': options.size_bytes = (size_t)atol(optarg); break;
        case 'a': options.addresses = (unsigned)atoi(optarg); break;
        case 'c': options.per_connection = (unsigned)atoi(optarg); break;
        case 'r': read_recipients(optarg); break;
        case 'P': options.pattern = optarg; break;
        case 'f': options.sender = optarg; break;
        case 'i':
        case 'H':
            options.mode = option == 'i' ? IDLE : HALF;
            options.sessions = (unsigned)atoi(optarg);
            break;
        default: usage();
        }
    }
    if (optind != argc || options.server.sin_port == 0 || options.sessions == 0 || options.addresses == 0 ||
        options.addresses > 65000 || strlen(options.sender) > COMMANDS_MAX / 4 ||
        strlen(options.pattern) > COMMANDS_MAX / 16)
        usage();
    if (options.mode == NEW)
        options.per_connection = 1;
}

static void report(uint64_t began_ns, uint64_t ended_ns)
{
    double elapsed_s = (double)(ended_ns - began_ns) / 1e9;

    qsort(latencies_us, latency_count, sizeof *latencies_us, compare_u32);
    qsort(dots_us, latency_count, sizeof *dots_us, compare_u32);
    printf("{\"mode\": \"%s\", \"sessions\": %u, \"addresses\": %u, \"size_bytes\": %zu, \"recipients\": %u,"
           " \"messages\": %llu, \"connections\": %llu, \"errors\": %llu, \"first_error\": \"%s\","
           " \"elapsed_s\": %.4f, \"messages_per_s\": %.1f, \"p50_us\": %u, \"p99_us\": %u, \"max_us\": %u,"
           " \"dot_p50_us\": %u, \"dot_p99_us\": %u, \"dot_max_us\": %u}\n",
           mode_names[options.mode], options.sessions, options.addresses, body_bytes - 3, recipient_count,
           (unsigned long long)messages, (unsigned long long)connections, (unsigned long long)errors, first_error,
           elapsed_s, (double)messages / elapsed_s, percentile(latencies_us, 0.5),
           percentile(latencies_us, 0.99), percentile(latencies_us, 1.0), percentile(dots_us, 0.5),
           percentile(dots_us, 0.99), percentile(dots_us, 1.0));
}

/* Serve whatever is ready; a session that ended in a load mode begins again until the deadline. */
static void turn(bool endless)
{
    struct epoll_event events[512];
    int n = epoll_wait(epoll_fd, events, 512, 100);

    for (int i = 0; i < n; i++) {
        struct session *s = events[i].data.ptr;
        bool alive = s != NULL && s->fd >= 0;

        if (!alive)
            continue;
        if (events[i].events & EPOLLOUT)
            alive = flush_out(s);
        if (alive && events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            alive = receive(s);
        if (alive)
            continue;
        close_session(s);
        if (!endless && now_ns() < deadline_ns)
            open_session(s);
    }
    while (unopened > 0 && opening < OPENING_MAX)
        open_session(&sessions[--unopened]);
    /* No new messages: what is open ends, and the report says why. */
    if (errors > ERRORS_MAX && now_ns() < deadline_ns)
        deadline_ns = now_ns();
}

static void hold_until_stdin_ends(uint64_t began_ns)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    char drop[256];

    while (held < options.sessions && errors == 0)
        turn(true);
    printf("{\"mode\": \"%s\", \"ready\": %u, \"errors\": %llu, \"first_error\": \"%s\", \"elapsed_s\": %.3f}\n",
           mode_names[options.mode], held, (unsigned long long)errors, first_error,
           (double)(now_ns() - began_ns) / 1e9);
    fflush(stdout);
    /* A regular file or /dev/null can't be waited for: then there is nothing to wait for. */
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        return;
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    for (;;) {
        ssize_t n = read(STDIN_FILENO, drop, sizeof drop);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            return;
        turn(true);
    }
}

int main(int argc, char **argv)
{
    struct rlimit files;
    uint64_t began_ns;

    read_options(argc, argv);
    make_body();
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    sessions = must(calloc(options.sessions, sizeof *sessions));
    for (unsigned i = 0; i < options.sessions; i++)
        sessions[i].fd = -1;
    began_ns = now_ns();
    unopened = options.sessions;
    if (options.mode == IDLE || options.mode == HALF) {
        while (unopened > 0 && opening < OPENING_MAX)
            open_session(&sessions[--unopened]);
        hold_until_stdin_ends(began_ns);
        return errors > 0;
    }
    deadline_ns = began_ns + (uint64_t)(options.seconds * 1e9);
    do {
        turn(false);
        if (now_ns() > deadline_ns + STALL_S * 1000000000ull) {
            fprintf(stderr, "smtpload: %u connections still wait %d s after the end\n", open_sessions, STALL_S);
            return 1;
        }
    } while (unopened > 0 || open_sessions > 0);
    report(began_ns, now_ns());
    return errors > 0;
}
