"""The DNS wire codec: questions to packets, packets to answers (RFC 1035, 2308, 6891).

All that touches a packet is nogil, bounded and raises nothing.  An answer is
read in two steps: read_answer() takes the packet apart into a *blob*, a flat
form without pointers in which names are expanded and in lower case, and
answer_of() makes Python objects of a blob.  The cache keeps blobs.

What bounds a hostile packet: a compression pointer goes strictly backwards and
at most 128 times in a name; a name has at most 255 bytes; a chain of CNAMEs at
most 8 links; a blob at most 128 KiB.  Whatever breaks a bound or the grammar
is the answer BROKEN, never half an answer.

No socket, no clock, no cache.  Rank 1.
"""

import enum
from collections import namedtuple

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

cdef enum:
    HEADER_BYTES = 12
    MAX_POINTERS = 128        # a name has at most 127 labels, and each may be behind a pointer
    MAX_CNAMES = 8            # what BIND and unbound follow is 11 to 16; real chains have up to 4
    EDNS_BYTES = 1_232        # what fits into the smallest IPv6 MTU (DNS flag day 2020)
    TTL_CAP_S = 86_400        # a day; RFC 8767 section 4 wants a cap of days, not weeks
    NEGATIVE_CAP_S = 10_800   # three hours, RFC 2308 section 5

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    DNAME = 39
    OPT = 41
    TLSA = 52


class Status(enum.IntEnum):
    """How a question ended: an rcode, or one of ours from 32 on."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    YXDOMAIN = 6
    YXRRSET = 7
    NXRRSET = 8
    NOTAUTH = 9
    NOTZONE = 10
    BADVERS = 16
    NODATA = 32         # the name exists, this type does not (rcode NOERROR)
    TIMEOUT = 33        # the deadline passed, or nobody answered
    BROKEN = 34         # an answer that is no DNS message, or goes round in circles
    UNREACHABLE = 35    # no server could be asked
    BADNAME = 36        # no such name can exist: a label over 63 bytes, over 255 in all, an empty label
    BUSY = 37           # too many questions are open
    OTHER = 38          # an rcode that has no name here; Answer.rcode has the number


Mx = namedtuple("Mx", ("preference", "exchange"))
Srv = namedtuple("Srv", ("priority", "weight", "port", "target"))
Soa = namedtuple("Soa", ("mname", "rname", "serial", "refresh", "retry", "expire", "minimum"))
Tlsa = namedtuple("Tlsa", ("usage", "selector", "matching_type", "data"))

cdef tuple _STATUS = tuple(
    Status(number) if number in Status._value2member_map_ else Status.OTHER for number in range(39)
)


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Question:
    """A name and a type.

    name  as text, in lower case, without the last dot; a dot or a byte that is no printable ASCII
          stands in a label as RFC 1035 section 5.1 has it: "\\." and "\\255"
    type  the number of the type, 1 for A
    """

    def __cinit__(self, bytes name not None, int type, /):
        cdef Py_ssize_t n = PyBytes_GET_SIZE(name), i
        cdef const char *p = PyBytes_AS_STRING(name)
        if not 0 <= type <= 0xFFFF:
            raise ValueError(f"no DNS type: {type}")
        if n and p[n - 1] == c"." and (n < 2 or p[n - 2] != c"\\"):
            name = name[:n - 1]
            p = PyBytes_AS_STRING(name)
            n -= 1
        for i in range(n):
            if c"A" <= p[i] <= c"Z":
                name = name.lower()
                break
        self.name = name
        self.type = type
        self.hash = hash(name) ^ (<Py_hash_t>type * 0x9E3779B1)
        if self.hash == -1:
            self.hash = -2

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        if type(other) is not Question:
            return NotImplemented
        return self.type == (<Question>other).type and self.name == (<Question>other).name

    def __repr__(self):
        return f"Question({self.name!r}, {self.type})"

    def __reduce__(self):
        return Question, (self.name, self.type)


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Answer:
    """What became of a question; made by the codec, the cache and the engines only.

    status          Status
    records         of the asked type, in the order of the answer: A and AAAA packed bytes, PTR, CNAME and NS
                    names, TXT tuples of strings, MX, SOA, SRV, TLSA named tuples, every other type raw bytes
    ttl             seconds, as it was received, capped; of the whole chain; of a negative answer by RFC 2308
    canonical_name  where the CNAMEs led, None where there was none
    is_authentic    the AD bit, of a server that is trusted with it
    is_failed       nothing is known: neither records nor "there are none"
    """

    def __init__(self):
        raise TypeError("answers come from a Resolver")

    def __eq__(self, other):
        if type(other) is not Answer:
            return NotImplemented
        cdef Answer that = <Answer>other
        return (self.status == that.status and self.records == that.records and self.ttl == that.ttl
                and self.rcode == that.rcode and self.is_authentic == that.is_authentic
                and self.canonical_name == that.canonical_name)

    def __hash__(self):
        return hash((self.status, self.records, self.ttl))

    @property
    def reason(self):
        """The status in a word, for logs: "servfail"."""
        return self.status.name.lower()

    def __repr__(self):
        return f"<Answer {self.status.name} {self.records!r} ttl={self.ttl}{' AD' if self.is_authentic else ''}>"

    def __reduce__(self):
        return make_answer, (int(self.status), self.records, self.ttl, self.is_authentic,
                             self.canonical_name, self.rcode)


def make_answer(int status, tuple records=(), long ttl=0, bint is_authentic=False,
                bytes canonical_name=None, int rcode=0):
    """An answer out of its parts: for other engines, recordings and tests."""
    cdef Answer answer = Answer.__new__(Answer)
    answer.status = Status(status)
    answer.records = records
    answer.ttl = ttl
    answer.is_authentic = is_authentic
    answer.canonical_name = canonical_name
    answer.rcode = rcode if rcode else (status if status < 32 else 0)
    answer.is_failed = status not in (NOERROR, NODATA, NXDOMAIN)
    return answer


cdef Answer failure(int status):
    """An answer that says only how it failed."""
    return make_answer(status)


# ------------------------------------------------------------------- names

cdef int wire_name(const uint8_t *text, Py_ssize_t length, uint8_t *out) noexcept nogil:
    """Write the name in wire form and lower case; returns its length, or -1 when no such name can exist.

    out has room for NAME_BYTES.  <domain> is RFC 1035 section 5.1, without the last dot; "" is the root.
    """
    cdef Py_ssize_t i = 0
    cdef int at = 1, label = 0       # label: where the length byte of the label stands
    cdef int byte
    if length == 0:
        out[0] = 0
        return 1
    while i < length:
        byte = text[i]
        i += 1
        if byte == c".":
            if at - label == 1 or at >= NAME_BYTES - 1 or i == length:
                return -1
            out[label] = <uint8_t>(at - label - 1)
            label = at
            at += 1
            continue
        if byte == c"\\":
            if i >= length:
                return -1
            byte = text[i]
            if c"0" <= byte <= c"9":
                if i + 3 > length or not (c"0" <= text[i + 1] <= c"9" and c"0" <= text[i + 2] <= c"9"):
                    return -1
                byte = (byte - c"0") * 100 + (text[i + 1] - c"0") * 10 + (text[i + 2] - c"0")
                if byte > 255:
                    return -1
                i += 3
            else:
                i += 1
        if at - label > 63 or at >= NAME_BYTES - 1:
            return -1
        out[at] = <uint8_t>(byte + 32 if c"A" <= byte <= c"Z" else byte)
        at += 1
    out[label] = <uint8_t>(at - label - 1)
    out[at] = 0
    return at + 1


cdef int expand_name(const uint8_t *p, int n, int at, uint8_t *out, int *end) noexcept nogil:
    """Write the name at p[at] to out without pointers, A to Z in lower case; returns its length, or -1.

    end is where the name ends in the packet.  A pointer leads strictly before the piece that it ends
    (RFC 1035 section 4.1.4: a *prior* occurrence), so there is no loop, and the count bounds a staircase.
    """
    cdef int length = 0, pointers = 0, piece = at, byte, i
    end[0] = -1
    while True:
        if at >= n:
            return -1
        byte = p[at]
        if byte < 64:
            if at + 1 + byte > n or length + 1 + byte > NAME_BYTES:
                return -1
            out[length] = <uint8_t>byte
            if byte == 0:
                if end[0] < 0:
                    end[0] = at + 1
                return length + 1
            for i in range(1, byte + 1):
                out[length + i] = p[at + i] + 32 if c"A" <= p[at + i] <= c"Z" else p[at + i]
            length += byte + 1
            if length >= NAME_BYTES:
                return -1
            at += byte + 1
        elif byte >= 192:
            if at + 2 > n:
                return -1
            if end[0] < 0:
                end[0] = at + 2
            at = (byte & 63) << 8 | p[at + 1]
            pointers += 1
            if at >= piece or at < HEADER_BYTES or pointers > MAX_POINTERS:
                return -1
            piece = at
        else:
            return -1


cdef int skip_name(const uint8_t *p, int n, int at) noexcept nogil:
    """Where the name at p[at] ends, or -1."""
    while at < n:
        if p[at] == 0:
            return at + 1
        if p[at] >= 192:
            return at + 2 if at + 2 <= n else -1
        if p[at] >= 64:
            return -1
        at += p[at] + 1
    return -1


cdef bytes text_of(const uint8_t *wire, int length):
    """A name on the wire as text, without the last dot."""
    cdef uint8_t out[4 * NAME_BYTES + 4]
    cdef int at = 0, i = 0, stop, byte
    while i < length and wire[i]:
        if at:
            out[at] = c"."
            at += 1
        stop = i + 1 + wire[i]
        i += 1
        while i < stop:
            byte = wire[i]
            i += 1
            if byte == c"." or byte == c"\\":
                out[at] = c"\\"
                at += 1
            elif byte <= 32 or byte >= 127:
                out[at] = c"\\"
                out[at + 1] = <uint8_t>(c"0" + byte // 100)
                out[at + 2] = <uint8_t>(c"0" + byte // 10 % 10)
                byte = c"0" + byte % 10
                at += 3
            out[at] = <uint8_t>byte
            at += 1
    return PyBytes_FromStringAndSize(<char *>out, at)


# ----------------------------------------------------------------- packets

cdef inline uint16_t u16(const uint8_t *p) noexcept nogil:
    return <uint16_t>(p[0] << 8 | p[1])


cdef inline uint32_t u32(const uint8_t *p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef inline void put16(uint8_t *p, unsigned int value) noexcept nogil:
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value


cdef int put_query(uint8_t *out, unsigned int id, const uint8_t *name, int name_length,
                   int type, bint has_edns, bint wants_ad) noexcept nogil:
    """Write a query, at most QUERY_BYTES; returns its length.  wants_ad: RFC 6840 section 5.7."""
    cdef int at = HEADER_BYTES
    put16(out, id)
    out[2] = 1                       # RD
    out[3] = 0x20 if wants_ad else 0
    put16(out + 4, 1)
    put16(out + 6, 0)
    put16(out + 8, 0)
    put16(out + 10, 1 if has_edns else 0)
    memcpy(out + at, name, name_length)
    at += name_length
    put16(out + at, type)
    put16(out + at + 2, 1)           # class IN
    at += 4
    if has_edns:                     # RFC 6891 section 6.1.2
        out[at] = 0
        put16(out + at + 1, OPT)
        put16(out + at + 3, EDNS_BYTES)
        put16(out + at + 5, 0)
        put16(out + at + 7, 0)
        put16(out + at + 9, 0)
        at += 11
    return at


cdef inline uint32_t hash_of(const uint8_t *p, int n) noexcept nogil:
    """FNV-1a; only spares comparisons, equal hashes are compared."""
    cdef uint32_t h = 2_166_136_261U
    cdef int i
    for i in range(n):
        h = (h ^ p[i]) * 16_777_619U
    return h


cdef int put_rdata(const uint8_t *p, int n, int at, int length, int type, uint8_t *out, int room) noexcept nogil:
    """Write one record's data with its names expanded; returns the length, or -1: malformed, or no room."""
    cdef int fixed = 0, names = 0, tail = 0, stop = at + length, put = 0, wrote, i
    if type == A:
        fixed = 4
    elif type == AAAA:
        fixed = 16
    elif type == MX:
        fixed, names = 2, 1
    elif type == PTR or type == CNAME or type == NS or type == DNAME:
        names = 1
    elif type == SRV:
        fixed, names = 6, 1
    elif type == SOA:
        names, tail = 2, 20
    else:
        if type == TXT:              # RFC 1035 section 3.3.14: one or more strings
            i = at
            while i < stop:
                i += p[i] + 1
            if i != stop or length == 0:
                return -1
        elif type == TLSA and length < 3:
            return -1
        if length > room:
            return -1
        memcpy(out, p + at, length)
        return length
    if fixed > length or fixed + names * NAME_BYTES + tail > room:
        return -1
    memcpy(out, p + at, fixed)
    at += fixed
    put = fixed
    for i in range(names):
        wrote = expand_name(p, stop, at, out + put, &at)
        if wrote < 0:
            return -1
        put += wrote
    if at + tail != stop:
        return -1
    memcpy(out + put, p + at, tail)
    return put + tail


cdef int finish_blob(uint8_t *blob, int length, int status, int rcode, uint32_t ttl, int count, int type,
                     bint is_authentic) noexcept nogil:
    cdef Head head
    head.ttl = ttl
    head.count = <uint16_t>count
    head.type = <uint16_t>type
    head.rcode = <uint16_t>rcode
    head.status = <uint8_t>status
    head.is_authentic = is_authentic
    memcpy(blob, &head, HEAD_BYTES)
    return length


cdef int broken(uint8_t *blob, int type) noexcept nogil:
    blob[HEAD_BYTES] = 0
    return finish_blob(blob, HEAD_BYTES + 1, BROKEN, 0, 0, 0, type, False)


cdef int read_answer(const uint8_t *p, int n, int at, const uint8_t *name, int name_length, int type,
                     bint trusts_ad, Record *records, uint8_t *blob) noexcept nogil:
    """Read the packet from p[at], behind its question, into a blob; returns the blob's length.

    name is the question's in lower case.  records has room for MAX_RECORDS, blob for BLOB_BYTES.  What breaks
    the grammar gives a blob that says BROKEN.  The blob is: Head, the length of the canonical name (0: none)
    and that name, then for each record two bytes of length and its data.
    """
    cdef uint8_t target[NAME_BYTES + 1]
    cdef uint8_t owner[NAME_BYTES + 1]
    cdef int target_length = name_length, owner_length, i, end = 0, found = 0, put, wrote, hops = 0
    cdef int answers = u16(p + 6), authorities = u16(p + 8), additionals = u16(p + 10)
    cdef int rcode = p[3] & 15, status, record_type, rdlength, count = 0
    cdef bint is_authentic = trusts_ad and p[3] & 0x20 != 0, is_alias = False
    cdef uint32_t ttl, name_hash = hash_of(name, name_length), target_hash = name_hash
    cdef uint32_t least = TTL_CAP_S, negative = 0

    memcpy(target, name, name_length)
    # The answer section, once, into a table.
    for i in range(answers):
        if at + 11 > n or found >= MAX_RECORDS:
            return broken(blob, type)
        records[found].owner = <uint16_t>at
        if p[at] == 0xC0 and p[at + 1] == HEADER_BYTES:
            records[found].owner_hash = name_hash
            at += 2
        else:
            owner_length = expand_name(p, n, at, owner, &at)
            if owner_length < 0:
                return broken(blob, type)
            records[found].owner_hash = hash_of(owner, owner_length)
        if at + 10 > n:
            return broken(blob, type)
        rdlength = u16(p + at + 8)
        if at + 10 + rdlength > n:
            return broken(blob, type)
        ttl = u32(p + at + 4)
        records[found].ttl = 0 if ttl > 0x7FFFFFFF else ttl     # RFC 2181 section 8
        records[found].type = u16(p + at)
        records[found].rdata = <uint16_t>(at + 10)
        records[found].rdlength = <uint16_t>rdlength
        if u16(p + at + 2) == 1:
            found += 1
        at += 10 + rdlength

    # Along the aliases to the records of the asked type.
    put = HEAD_BYTES + 1
    while True:
        count = 0
        wrote = -1
        for i in range(found):
            record_type = records[i].type
            if record_type != type and record_type != CNAME or records[i].owner_hash != target_hash:
                continue
            owner_length = expand_name(p, n, records[i].owner, owner, &end)
            if owner_length != target_length or memcmp(owner, target, target_length) != 0:
                continue
            if record_type != type:
                wrote = i
                continue
            if count == 0 and is_alias:
                blob[HEAD_BYTES] = <uint8_t>target_length
                memcpy(blob + put, target, target_length)
                put += target_length
            rdlength = put_rdata(p, n, records[i].rdata, records[i].rdlength, type, blob + put + 2,
                                 BLOB_BYTES - put - 2)
            if rdlength < 0:
                return broken(blob, type)
            blob[put] = <uint8_t>(rdlength >> 8)
            blob[put + 1] = <uint8_t>rdlength
            put += rdlength + 2
            count += 1
            if records[i].ttl < least:
                least = records[i].ttl
        if count or wrote < 0:
            break
        hops += 1
        if hops > MAX_CNAMES:
            return broken(blob, type)
        target_length = expand_name(p, records[wrote].rdata + records[wrote].rdlength, records[wrote].rdata,
                                    target, &end)
        if target_length < 0 or end != records[wrote].rdata + records[wrote].rdlength:
            return broken(blob, type)
        target_hash = hash_of(target, target_length)
        is_alias = True
        if records[wrote].ttl < least:
            least = records[wrote].ttl

    if not is_alias:
        blob[HEAD_BYTES] = 0
    if count:
        # NXDOMAIN with records contradicts itself; only behind an alias do both make sense, and then no records.
        if rcode == NOERROR:
            return finish_blob(blob, put, NOERROR, rcode, least, count, type, is_authentic)
        return finish_blob(blob, HEAD_BYTES + 1 + blob[HEAD_BYTES], status_of(rcode) if rcode != NXDOMAIN else BROKEN,
                           rcode, 0, 0, type, is_authentic)

    # Nothing of the asked type: the SOA says for how long (RFC 2308), the OPT has the rest of the rcode.
    if is_alias:
        blob[HEAD_BYTES] = <uint8_t>target_length
        memcpy(blob + put, target, target_length)
        put += target_length
    for i in range(authorities + additionals):
        at = skip_name(p, n, at)
        if at < 0 or at + 10 > n:
            return broken(blob, type)
        record_type = u16(p + at)
        rdlength = u16(p + at + 8)
        if at + 10 + rdlength > n:
            return broken(blob, type)
        if record_type == SOA and i < authorities and rdlength >= 22:
            ttl = u32(p + at + 4)
            negative = u32(p + at + 10 + rdlength - 4)
            if ttl > 0x7FFFFFFF or negative > 0x7FFFFFFF:
                negative = 0
            negative = min(min(ttl, negative), min(least, <uint32_t>NEGATIVE_CAP_S))
        elif record_type == OPT and i >= authorities:
            rcode |= p[at + 4] << 4
        at += 10 + rdlength
    status = NODATA if rcode == NOERROR else status_of(rcode)
    if status != NODATA and status != NXDOMAIN:
        negative = 0
    return finish_blob(blob, put, status, rcode, negative, 0, type, is_authentic)


cdef inline int status_of(int rcode) noexcept nogil:
    return rcode if rcode <= 10 or rcode == BADVERS else OTHER


# ------------------------------------------------------------------ objects

cdef object record_of(const uint8_t *p, int n, int type):
    """One record's data, names expanded, as the value that Answer.records shows."""
    cdef int first, at = 0
    cdef list strings
    if type == A or type == AAAA:
        return PyBytes_FromStringAndSize(<const char *>p, n)
    if type == MX:
        return Mx(u16(p), text_of(p + 2, n - 2))
    if type == PTR or type == CNAME or type == NS or type == DNAME:
        return text_of(p, n)
    if type == TXT:
        strings = []
        while at < n:
            strings.append(PyBytes_FromStringAndSize(<const char *>p + at + 1, p[at]))
            at += p[at] + 1
        return tuple(strings)
    if type == SRV:
        return Srv(u16(p), u16(p + 2), u16(p + 4), text_of(p + 6, n - 6))
    if type == TLSA:
        return Tlsa(p[0], p[1], p[2], PyBytes_FromStringAndSize(<const char *>p + 3, n - 3))
    if type == SOA:
        first = skip_name(p, n, 0)
        at = n - 20
        return Soa(text_of(p, first), text_of(p + first, at - first), u32(p + at), u32(p + at + 4),
                   u32(p + at + 8), u32(p + at + 12), u32(p + at + 16))
    return PyBytes_FromStringAndSize(<const char *>p, n)


cdef Answer answer_of(const uint8_t *blob, int length):
    """The Python form of a blob of ours."""
    cdef Head head
    cdef Answer answer = Answer.__new__(Answer)
    cdef int at = HEAD_BYTES + 1 + blob[HEAD_BYTES], i, size
    cdef object record
    cdef tuple records = ()
    memcpy(&head, blob, HEAD_BYTES)
    if head.count:
        records = PyTuple_New(head.count)
        for i in range(head.count):
            size = u16(blob + at)
            record = record_of(blob + at + 2, size, head.type)
            Py_INCREF(record)
            PyTuple_SET_ITEM(records, i, record)
            at += size + 2
    answer.status = <object>_STATUS[head.status]
    answer.records = records
    answer.canonical_name = text_of(blob + HEAD_BYTES + 1, blob[HEAD_BYTES]) if blob[HEAD_BYTES] else None
    answer.rcode = head.rcode
    answer.ttl = head.ttl
    answer.is_authentic = head.is_authentic
    answer.is_failed = not (head.status == NOERROR or head.status == NODATA or head.status == NXDOMAIN)
    return answer


def encode_query(Question question not None, int id, /, *, bint has_edns=True, bint wants_ad=False):
    """The query as a packet, its name as it stands.  Raises ValueError when no such name can exist."""
    cdef uint8_t name[NAME_BYTES + 1]
    cdef uint8_t out[QUERY_BYTES]
    cdef int length = wire_name(<const uint8_t *>PyBytes_AS_STRING(question.name),
                                PyBytes_GET_SIZE(question.name), name)
    if length < 0:
        raise ValueError(f"no domain name: {question.name!r}")
    length = put_query(out, id, name, length, question.type, has_edns, wants_ad)
    return PyBytes_FromStringAndSize(<char *>out, length)


def decode(bytes packet not None, Question question not None, /, *, bint trusts_ad=False):
    """The answer in a packet, or None when it is no answer to this question (its case is not compared).

    The engine reads packets in the same way but into its own buffers.  A truncated packet is read as far as it goes.
    """
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(packet)
    cdef uint8_t name[NAME_BYTES + 1]
    cdef uint8_t asked[NAME_BYTES + 1]
    cdef int length, end = 0
    cdef Record *records
    cdef uint8_t *blob
    length = wire_name(<const uint8_t *>PyBytes_AS_STRING(question.name), PyBytes_GET_SIZE(question.name), name)
    if length < 0 or n > 65_535 or n < HEADER_BYTES or p[2] & 0xF8 != 0x80 or u16(p + 4) != 1:
        return None
    if expand_name(p, <int>n, HEADER_BYTES, asked, &end) != length or memcmp(asked, name, length) != 0:
        return None
    if end + 4 > n or u16(p + end) != question.type or u16(p + end + 2) != 1:
        return None
    records = <Record *>malloc(MAX_RECORDS * sizeof(Record))
    blob = <uint8_t *>malloc(BLOB_BYTES)
    try:
        if records is NULL or blob is NULL:
            raise MemoryError
        length = read_answer(p, <int>n, end + 4, name, length, question.type, trusts_ad, records, blob)
        return answer_of(blob, length)
    finally:
        free(records)
        free(blob)
