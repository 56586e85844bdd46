"""The DNS batch engine: many questions out with one system call, many answers in with another.

Who does what: the engine knows the open questions, matches answers to them,
keeps the cache and counts; resolver.py owns the sockets, chooses servers,
decides what is asked again and where, and runs the timer.  The engine never
waits, never opens a socket and never reads a clock: `now` comes in as seconds
on the monotonic clock, randomness as a function (the kernel's, in production).
Its two system calls, send and receive, work on descriptors that it is given.

Against spoofing: the id of a query is drawn at random and never used twice on
one socket; the case of its letters is random (0x20); a batch leaves from a
socket drawn at random; sockets are connected, so the kernel drops what does
not come from the server's address and port; an answer must echo the question
byte by byte.  What fails is counted: `late`, `duplicates`, `forged`.  Rank 1.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, ENOBUFS
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from fastsmtp._dnsblock cimport (
    DNS_BLOCK, dns_block, dns_block_init, dns_forks, dns_receive, dns_send, dns_watch_forks,
)
from fastsmtp._dnscache cimport Cache
from fastsmtp._dnscodec cimport (
    BADNAME, BADVERS, BLOB_BYTES, BUSY, FORMERR, MAX_RECORDS, NAME_BYTES, NODATA, NOERROR, NOTIMP, NXDOMAIN,
    QUERY_BYTES, TIMEOUT, UNREACHABLE, Answer, Head, Question, Record, answer_of, failure, put_query, read_answer,
    wire_name,
)
from fastsmtp._dnscodec import Mx, Soa, Srv, Status, Tlsa, decode, encode_query, make_answer

cdef enum:
    BUCKETS = 256             # of a port's open questions
    RANDOM_BYTES = 4_096      # one getrandom for some 400 queries
    PORT_QUERIES = 10_000     # then a socket is retired: a sixth of the ids are used
    FAILURE_TTL_S = 5         # RFC 9520 section 3.2: at least 1, at most 300; 5 recommended

PORT_AGE_S = 60.0             # and at the latest after this long
NEVER = float("inf")

# Why a question is handed back: what the server's answer, or its silence, asks for.
cdef enum:
    V_TRUNCATED = 1
    V_CASE = 2
    V_EDNS = 3
    V_FAILED = 4
    V_UNREACHABLE = 5
    V_TIMEOUT = 6

TRUNCATED = V_TRUNCATED       # ask over TCP
CASE = V_CASE                 # the name came back in other letters: ask over TCP
NO_EDNS = V_EDNS              # ask again without EDNS
FAILED = V_FAILED             # an rcode that says nothing of the name, or a broken message: ask another server
NOBODY = V_UNREACHABLE        # the network says that nobody is there
TIMED_OUT = V_TIMEOUT         # silence


@cython.final
cdef class Server:
    """One name server, what we know of it and how it does; plain attributes, all of them may be read at any time.

    mixes_case, has_edns, trusts_ad   how it is asked, and whether its AD bit counts
    queries, answers, timeouts        over UDP; an answer that failed is an answer
    failures                          time-outs and refused packets since its last answer
    latency_s, latency_total_s        smoothed (1/8 of each new one), and the sum over all answers
    down_until                        on the monotonic clock; 0.0: it is thought well
    """
    cdef readonly str address
    cdef readonly int port
    cdef public bint mixes_case, has_edns, trusts_ad
    cdef public long queries, answers, timeouts, failures, tcp_queries, tcp_answers
    cdef public long case_matches, case_misses, edns_answers, edns_refusals
    cdef public double latency_s, latency_total_s, down_until, backoff_s
    cdef public list ports

    def __init__(self, str address not None, int port=53, *, bint trusts_ad=False, bint mixes_case=True):
        self.address = address
        self.port = port
        self.trusts_ad = trusts_ad
        self.mixes_case = mixes_case
        self.has_edns = True
        self.ports = []

    def __repr__(self):
        return f"<Server {self.address} port {self.port}>"

    cdef void answered(self, double after_s) noexcept:
        self.answers += 1
        self.failures = 0
        self.down_until = 0.0
        self.backoff_s = 0.0
        self.latency_total_s += after_s
        self.latency_s = after_s if self.answers == 1 else self.latency_s + (after_s - self.latency_s) / 8


@cython.final
cdef class Port:
    """One UDP socket of the pool, connected to its server; the caller owns the descriptor and closes it."""
    cdef readonly Server server
    cdef readonly object socket
    cdef readonly int queries, open
    cdef double born
    cdef int fd
    cdef PyObject *heads[BUCKETS]     # of Open, by the low byte of the id; the engine's table owns them
    cdef uint8_t used[8192]           # a bit for each id that was ever sent
    cdef uint8_t answered[8192]       # and that was answered

    def __cinit__(self, Server server not None, socket, double now):
        self.server = server
        self.socket = socket
        self.fd = socket.fileno()
        self.born = now

    def is_spent(self, double now):
        """Whether it shall send no more: 10,000 queries, or a minute old."""
        return self.queries >= PORT_QUERIES or now - self.born >= PORT_AGE_S


@cython.final
@cython.freelist(64)
cdef class Batch:
    """What one ask() waits for; answers become known one by one, callback(answers) is called once, with the last."""
    cdef list answers
    cdef readonly int missing
    cdef readonly list fresh          # of Open, to be sent; None: all are known or on their way
    cdef double deadline
    cdef public object callback       # may be set until the first answer comes; None: nobody is called

    def done(self):
        """The answers, in the order of the questions; only when none is missing."""
        return tuple(self.answers)


@cython.final
@cython.freelist(256)
cdef class Open:
    """A question on its way, and who waits for it.

    attempts, tried  how often it was sent, and a bit for each server (by the resolver's number)
    failure          the last answer that said nothing of the name
    verdict          why it was handed back
    """
    cdef readonly Question question
    cdef readonly Port port           # None: not on UDP now
    cdef readonly Server server       # that was asked last
    cdef Batch batch
    cdef list more                    # of (batch, index), when several wait
    cdef PyObject *next
    cdef public Answer failure
    cdef public int verdict
    cdef public int attempts
    cdef public unsigned long tried
    cdef public bint has_edns
    cdef public double due
    cdef double sent
    cdef int index, length
    cdef uint16_t id
    cdef uint8_t wire[NAME_BYTES + 1]  # the name, in the letters in which it was sent

    @property
    def is_awaited(self):
        return self.batch is not None or self.more is not None


@cython.final
cdef class Engine:
    """The open questions and the cache of one worker.

    random(n)    n unpredictable bytes; drawn in blocks, never before the first query, thrown away after a fork
    one_by_one   use send and recvmsg where sendmmsg and recvmmsg would do (the only way outside Linux)
    Counts: queries, answers, timeouts, late, duplicates, forged, joined (asked while on its way), cache_hits,
    cache_misses, case_misses.
    """
    cdef readonly Cache cache
    cdef dict table                   # Question -> Open
    cdef list finished                # Batches whose callback is due
    cdef object random
    cdef bytes random_block
    cdef int random_at
    cdef unsigned int forks
    cdef bint one_by_one
    cdef double epoch
    cdef dns_block *outbox
    cdef dns_block *inbox
    cdef Record *records
    cdef uint8_t *blob
    cdef readonly int max_open
    cdef readonly long queries, answers, timeouts, late, duplicates, forged, joined
    cdef readonly long cache_hits, cache_misses, case_misses

    def __cinit__(self, random, *, long cache_bytes=16_777_216, bint one_by_one=False, int max_open=20_000):
        self.random = random
        self.cache = Cache(cache_bytes)
        self.table = {}
        self.finished = []
        self.random_block = b""
        self.one_by_one = one_by_one
        self.max_open = max_open
        self.epoch = -1.0
        self.outbox = <dns_block *>calloc(1, sizeof(dns_block))
        self.inbox = <dns_block *>calloc(1, sizeof(dns_block))
        self.records = <Record *>malloc(MAX_RECORDS * sizeof(Record))
        self.blob = <uint8_t *>malloc(BLOB_BYTES)
        if self.outbox is NULL or self.inbox is NULL or self.records is NULL or self.blob is NULL:
            raise MemoryError
        dns_block_init(self.outbox)
        dns_block_init(self.inbox)

    def __dealloc__(self):
        free(self.outbox)
        free(self.inbox)
        free(self.records)
        free(self.blob)

    def __len__(self):
        """How many questions are open."""
        return len(self.table)

    # ---------------------------------------------------------- questions

    def ask(self, questions not None, double deadline, double now, callback):
        """A Batch: what the cache knows is answered, what is on its way is joined, the rest is batch.fresh.

        When batch.missing is 0, batch.done() has the answers and callback is not called; otherwise it is called once.
        """
        cdef Batch batch = Batch.__new__(Batch)
        cdef uint32_t now_s = self.seconds(now)
        cdef Question question
        cdef Open open
        cdef list answers = []
        cdef const uint8_t *blob
        cdef int length = 0, index = 0
        batch.deadline = deadline
        batch.callback = callback
        batch.answers = answers
        for question in questions:
            blob = self.cache.find(question, now_s, &length)
            if blob is not NULL:
                self.cache_hits += 1
                answers.append(answer_of(blob, length))
                index += 1
                continue
            self.cache_misses += 1
            open = <Open>self.table.get(question)
            if open is None:
                open = Open.__new__(Open)
                open.length = wire_name(<const uint8_t *>PyBytes_AS_STRING(question.name),
                                        PyBytes_GET_SIZE(question.name), open.wire)
                if open.length < 0 or len(self.table) >= self.max_open:
                    answers.append(failure(BADNAME if open.length < 0 else BUSY))
                    index += 1
                    continue
                open.question = question
                open.has_edns = True
                open.due = NEVER_C
                open.batch = batch
                open.index = index
                self.table[question] = open
                if batch.fresh is None:
                    batch.fresh = []
                batch.fresh.append(open)
            else:
                self.joined += 1
                if open.attempts > 1:
                    open.attempts = 1       # the new one has a right to be asked for again too
                if open.batch is None:
                    open.batch = batch
                    open.index = index
                elif open.more is None:
                    open.more = [(batch, index)]
                else:
                    open.more.append((batch, index))
            answers.append(None)
            batch.missing += 1
            index += 1
        return batch

    def peek(self, Question question not None, double now):
        """The answer if the cache has it, else None; counts nothing."""
        cdef int length = 0
        cdef const uint8_t *blob = self.cache.find(question, self.seconds(now), &length)
        return None if blob is NULL else answer_of(blob, length)

    def know(self, tuple questions not None, double now):
        """The answers if the cache has every one of them, else None; what is no Question it never has."""
        cdef int length = 0
        cdef uint32_t second = self.seconds(now)
        cdef const uint8_t *blob
        cdef list answers = []
        for question in questions:
            if type(question) is not Question:
                return None
            blob = self.cache.find(<Question>question, second, &length)
            if blob is NULL:
                return None
            answers.append(answer_of(blob, length))
        self.cache_hits += len(answers)
        return tuple(answers)

    def send(self, Port port not None, list opens not None, double now, double wait_s, unsigned long server_bit=0):
        """Send these from this socket, to be answered in wait_s seconds; server_bit is added to their `tried`.

        What the system does not take is due at once.  Returns 0, or the errno of the last refusal.
        """
        cdef int count = len(opens), at = 0, block, i, sent, error = 0
        cdef Open open
        cdef Server server = port.server
        cdef dns_block *out = self.outbox
        while at < count:
            block = min(count - at, <int>DNS_BLOCK)
            for i in range(block):
                open = <Open>opens[at + i]
                self.detach(open)
                self.attach(open, port)
                open.sent = now
                open.due = now + wait_s
                open.attempts += 1
                open.tried |= server_bit
                self.mix_case(open, server.mixes_case)
                out.length[i] = put_query(out.bytes[i], open.id, open.wire, open.length, open.question.type,
                                          open.has_edns and server.has_edns, server.trusts_ad)
            sent = dns_send(port.fd, out, block, self.one_by_one)
            if sent < 0:
                error = -sent
                # The error may be that of an earlier packet, reported now: once more, then give up.
                sent = dns_send(port.fd, out, block, self.one_by_one)
                if sent < 0:
                    error = -sent
                    sent = 0
                else:
                    error = 0
            for i in range(sent, block):
                open = <Open>opens[at + i]
                self.detach(open)
                open.due = now
                if sent or error == EAGAIN or error == ENOBUFS:
                    open.attempts -= 1      # no fault of the server's
                else:
                    open.verdict = V_UNREACHABLE
            port.queries += block
            server.queries += sent
            self.queries += sent
            at += block
        return error

    def encode(self, Open open not None, Server server not None, int id, double now, double wait_s):
        """The query for a TCP connection, its two bytes of length before it; takes the question off UDP."""
        cdef uint8_t out[QUERY_BYTES + 2]
        cdef int length
        self.detach(open)
        open.server = server
        open.verdict = 0
        open.sent = now
        open.due = now + wait_s
        open.attempts += 1
        self.mix_case(open, server.mixes_case)
        length = put_query(out + 2, id, open.wire, open.length, open.question.type,
                           open.has_edns and server.has_edns, server.trusts_ad)
        out[0] = <uint8_t>(length >> 8)
        out[1] = <uint8_t>length
        server.tcp_queries += 1
        self.queries += 1
        return PyBytes_FromStringAndSize(<char *>out, length + 2)

    # ------------------------------------------------------------ answers

    def receive(self, Port port not None, double now):
        """Take what has come to this socket.

        Returns None, or a list of Opens that want a decision, each with its verdict.
        """
        cdef int i, n
        cdef list back = None
        cdef Open open
        while True:
            n = dns_receive(port.fd, self.inbox, self.one_by_one)
            if n < 0:
                # An ICMP error: which packet it was about is not said, so all of this socket are asked again.
                open = self.first(port)
                while open is not None:
                    self.detach(open)
                    open.verdict = V_UNREACHABLE
                    port.server.failures += 1
                    back = [] if back is None else back
                    back.append(open)
                    open = self.first(port)
                break
            for i in range(n):
                open = self.match(port, self.inbox.bytes[i], <int>self.inbox.length[i], self.inbox.is_cut[i], now)
                if open is not None:
                    back = [] if back is None else back
                    back.append(open)
            if n < DNS_BLOCK:
                break
        if self.finished:
            self.call_back()
        return back

    cdef Open match(self, Port port, const uint8_t *p, int n, bint is_cut, double now):
        """Take one packet; returns the question when it wants a decision, None when all is done."""
        cdef unsigned int id
        cdef Open open
        cdef Server server = port.server
        cdef int verdict
        if n < 12 or p[2] & 0xF8 != 0x80:
            self.forged += 1
            return None
        id = p[0] << 8 | p[1]
        open = self.find(port, id)
        if open is None:
            if not port.used[id >> 3] & (1 << (id & 7)):
                self.forged += 1
            elif port.answered[id >> 3] & (1 << (id & 7)):
                self.duplicates += 1
            else:
                self.late += 1
            return None
        verdict = compare(open, p, n, server.has_edns and open.has_edns)
        if verdict < 0:
            self.forged += 1
            return None
        port.answered[id >> 3] |= 1 << (id & 7)
        self.detach(open)
        self.answers += 1
        server.answered(now - open.sent)
        if verdict == V_CASE:
            self.case_misses += 1
            server.case_misses += 1
        elif verdict == 0:
            if server.mixes_case:
                server.case_matches += 1
            verdict = V_TRUNCATED if is_cut or p[2] & 2 else self.read(open, p, n, now)
        open.verdict = verdict
        return open if verdict else None

    def answer(self, Open open not None, bytes message not None, double now):
        """Take an answer that came over TCP, where the id was found; returns 0, or a verdict.

        -1: it does not answer this question, and the connection can't be trusted.
        """
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(message)
        cdef int n = <int>min(PyBytes_GET_SIZE(message), 65_535), verdict
        cdef Server server = open.server
        if n < 12 or p[2] & 0xF8 != 0x80:
            return -1
        verdict = compare(open, p, n, server.has_edns and open.has_edns)
        if verdict < 0:
            return -1
        self.answers += 1
        server.tcp_answers += 1
        if verdict == V_CASE:
            # Nobody but the server can have written this: it does not keep the case.
            server.mixes_case = False
            verdict = 0
        if verdict == 0:
            verdict = self.read(open, p, n, now)
        open.verdict = verdict
        if self.finished:
            self.call_back()
        return verdict

    cdef int read(self, Open open, const uint8_t *p, int n, double now):
        """Read an answer that is known to be one; returns 0 when the question is done with, else a verdict."""
        cdef uint8_t name[NAME_BYTES + 1]
        cdef int i, length
        cdef bint had_edns = open.has_edns and open.server.has_edns
        cdef Head head
        for i in range(open.length):
            name[i] = open.wire[i] + 32 if c"A" <= open.wire[i] <= c"Z" else open.wire[i]
        length = read_answer(p, n, 12 + open.length + 4, name, open.length, open.question.type,
                             open.server.trusts_ad, self.records, self.blob)
        memcpy(&head, self.blob, sizeof(Head))
        if head.status == NOERROR or head.status == NODATA or head.status == NXDOMAIN:
            if had_edns:
                open.server.edns_answers += 1
            self.finish(open, answer_of(self.blob, length))
            if head.ttl:
                self.cache.put(open.question, self.blob, length, self.seconds(now) + head.ttl)
            return 0
        if had_edns and (head.status == FORMERR or head.status == NOTIMP or head.status == BADVERS):
            return V_EDNS
        open.failure = answer_of(self.blob, length)
        return V_FAILED

    def opens(self):
        """A list of all open questions."""
        return list(self.table.values())

    def settle(self, Open open not None, double now, int status=TIMEOUT):
        """Give up: everybody gets the last failing answer, else one with this status."""
        cdef uint8_t blob[16]
        cdef Head head
        cdef Answer answer = open.failure
        self.detach(open)
        if answer is not None:
            memset(blob, 0, sizeof(blob))
            memset(&head, 0, sizeof(head))
            head.status = <uint8_t>int(answer.status)
            head.rcode = <uint16_t>answer.rcode
            head.type = <uint16_t>open.question.type
            memcpy(blob, &head, sizeof(head))
            self.cache.put(open.question, blob, sizeof(head) + 1, self.seconds(now) + FAILURE_TTL_S)
        else:
            answer = failure(status)
        self.finish(open, answer)
        self.call_back()

    def tick(self, double now):
        """Look at the clocks: deadlines that have passed are answered TIMEOUT.

        Returns a list, often empty, of Opens whose server was silent for too long and that somebody still waits for.
        """
        cdef Open open
        cdef list overdue = [], again = []
        cdef Answer timeout = None
        for open in self.table.values():
            if open.batch is not None and open.batch.deadline <= now or open.more is not None:
                timeout = failure(TIMEOUT) if timeout is None else timeout
                self.drop_waiters(open, timeout, now)
            if open.due <= now:
                overdue.append(open)
        for open in overdue:
            if open.port is not None:
                self.timeouts += 1
                open.port.server.timeouts += 1
                open.port.server.failures += 1
                self.detach(open)
            if open.batch is None and open.more is None:
                self.table.pop(open.question, None)
            else:
                # Not on UDP and "nobody there": it was not silence that it waited for.
                if open.verdict != V_UNREACHABLE:
                    open.verdict = V_TIMEOUT
                again.append(open)
        if self.finished:
            self.call_back()
        return again

    cdef void drop_waiters(self, Open open, Answer timeout, double now):
        """Answer those whose deadline has passed; the question itself stays open."""
        cdef list still
        cdef Batch batch
        cdef int index
        if open.batch is not None and open.batch.deadline <= now:
            self.deliver(open.batch, open.index, timeout)
            open.batch = None
        if open.more is not None:
            still = []
            for batch, index in open.more:
                if batch.deadline <= now:
                    self.deliver(batch, index, timeout)
                else:
                    still.append((batch, index))
            open.more = still or None

    cdef void finish(self, Open open, Answer answer):
        """Everybody who waits gets this answer; the question is no longer open."""
        cdef Batch batch
        cdef int index
        self.table.pop(open.question, None)
        if open.batch is not None:
            self.deliver(open.batch, open.index, answer)
            open.batch = None
        if open.more is not None:
            for batch, index in open.more:
                self.deliver(batch, index, answer)
            open.more = None

    cdef inline void deliver(self, Batch batch, int index, Answer answer):
        batch.answers[index] = answer
        batch.missing -= 1
        if batch.missing == 0 and batch.callback is not None:
            self.finished.append(batch)

    cdef void call_back(self):
        """Outside of every loop over our own tables: a callback may ask the next questions."""
        cdef list finished = self.finished
        cdef Batch batch
        self.finished = []
        for batch in finished:
            callback = batch.callback
            batch.callback = None
            if callback is None:
                continue
            try:
                callback(tuple(batch.answers))
            except Exception as fault:
                # Within `except` the error is no longer the thread's; without it nothing would be written.
                PyErr_SetObject(type(fault), fault)
                PyErr_WriteUnraisable(callback)

    # ---------------------------------------------------- ids and letters

    def draw(self, int n):
        """A random number from 0 to n - 1, n at most 256."""
        return self.random16() % n

    cdef unsigned int random16(self) except? 0:
        if self.random_at + 2 > PyBytes_GET_SIZE(self.random_block) or self.forks != dns_forks:
            self.random_block = self.random(RANDOM_BYTES)
            self.random_at = 0
            self.forks = dns_forks
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(self.random_block) + self.random_at
        self.random_at += 2
        return p[0] << 8 | p[1]

    cdef int mix_case(self, Open open, bint is_mixed) except -1:
        """Draw the case of every letter anew; a length byte is below 64 and no letter."""
        cdef int i
        cdef unsigned int bits = 1, letter
        for i in range(open.length):
            letter = open.wire[i] | 0x20
            if c"a" <= letter <= c"z" and open.wire[i] >= 64:
                if is_mixed:
                    if bits == 1:
                        bits = self.random16() | 0x10000
                    letter ^= (bits & 1) << 5
                    bits >>= 1
                open.wire[i] = <uint8_t>letter
        return 0

    cdef int attach(self, Open open, Port port) except -1:
        """Give it an id that this socket has never used."""
        cdef unsigned int id = self.random16()
        while port.used[id >> 3] & (1 << (id & 7)):
            id = self.random16()
        port.used[id >> 3] |= 1 << (id & 7)
        open.id = <uint16_t>id
        open.port = port
        open.server = port.server
        open.verdict = 0
        open.next = port.heads[id & 255]
        port.heads[id & 255] = <PyObject *>open
        port.open += 1
        return 0

    cdef void detach(self, Open open):
        """Take it off its socket; what still comes with its id is late."""
        cdef PyObject **link
        cdef Port port = open.port
        if port is None:
            return
        link = &port.heads[open.id & 255]
        while link[0] is not <PyObject *>open:
            link = &(<Open>link[0]).next
        link[0] = open.next
        open.next = NULL
        open.port = None
        port.open -= 1

    cdef Open find(self, Port port, unsigned int id):
        cdef PyObject *at = port.heads[id & 255]
        while at is not NULL:
            if (<Open>at).id == id:
                return <Open>at
            at = (<Open>at).next
        return None

    cdef Open first(self, Port port):
        cdef int i
        for i in range(BUCKETS):
            if port.heads[i] is not NULL:
                return <Open>port.heads[i]
        return None

    cdef uint32_t seconds(self, double now):
        """Whole seconds since the first question, plus one."""
        if self.epoch < 0:
            self.epoch = now
        return <uint32_t>(now - self.epoch) + 1 if now > self.epoch else 1


cdef double NEVER_C = NEVER

# A name that is cimported is no attribute of the module by itself.
globals().update(Answer=Answer, Question=Question)


cdef int compare(Open open, const uint8_t *p, int n, bint has_edns) noexcept nogil:
    """0: the packet echoes our question; V_CASE: in other letters; V_EDNS: it has none and did not like EDNS; -1: no."""
    cdef int i, at = 12 + open.length, rcode = p[3] & 15
    cdef unsigned int ours, theirs
    if p[4] == 0 and p[5] == 0 and has_edns and (rcode == FORMERR or rcode == NOTIMP):
        return V_EDNS
    if p[4] != 0 or p[5] != 1 or n < at + 4:
        return -1
    if (p[at] << 8 | p[at + 1]) != open.question.type or p[at + 2] != 0 or p[at + 3] != 1:
        return -1
    if memcmp(p + 12, open.wire, open.length) == 0:
        return 0
    for i in range(open.length):
        ours = open.wire[i]
        theirs = p[12 + i]
        if ours != theirs and (ours ^ theirs != 0x20 or not c"a" <= (ours | 0x20) <= c"z"):
            return -1
    return V_CASE


if dns_watch_forks() != 0:
    raise MemoryError
