"""Starting a program from a process that has threads and a loop: posix_spawn, without the GIL.

os.posix_spawn keeps the GIL until the program has been loaded (0.2 to 2 ms),
and subprocess has no better way; here the other threads go on, and with them
the event loop.  The child gets the descriptors that it is given, 2, and no
other; default signals; a process group of its own, so that a kill reaches
what it has started.

Rank 3: works on what it is given; imports nothing of ours.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport free, malloc

cdef extern from *:
    """
    #include <errno.h>
    #include <signal.h>
    #include <spawn.h>
    #include <sys/types.h>
    #include <unistd.h>

    /* Newer than the C library that we may be built for (glibc 2.29 and 2.34); without the second
       close-on-exec, which Python sets on all that it opens, has to do. */
    #if defined(__linux__) && defined(__GLIBC__)
    extern int posix_spawn_file_actions_addchdir_np(posix_spawn_file_actions_t *, const char *)
        __attribute__((weak));
    extern int posix_spawn_file_actions_addclosefrom_np(posix_spawn_file_actions_t *, int)
        __attribute__((weak));
    #define HAS_NEWER 1
    #endif

    static int add_directory(posix_spawn_file_actions_t *actions, const char *directory) {
    #ifdef HAS_NEWER
        if (posix_spawn_file_actions_addchdir_np)
            return posix_spawn_file_actions_addchdir_np(actions, directory);
    #endif
        (void)actions, (void)directory;
        return 0;
    }

    static int add_closing(posix_spawn_file_actions_t *actions, int first) {
    #ifdef HAS_NEWER
        if (posix_spawn_file_actions_addclosefrom_np)
            return posix_spawn_file_actions_addclosefrom_np(actions, first);
    #endif
        (void)actions, (void)first;
        return 0;
    }

    /* 0, or an errno.  ours[i] becomes theirs[i]; all of ours are above all of theirs. */
    static int start(pid_t *pid, const char *path, char **arguments, char **environment,
                     const char *directory, const int *ours, const int *theirs, int count) {
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attributes;
        sigset_t all, none;
        int i, fd, last = 2, error;

        sigfillset(&all);
        sigemptyset(&none);
        if ((error = posix_spawn_file_actions_init(&actions)))
            return error;
        if ((error = posix_spawnattr_init(&attributes))) {
            posix_spawn_file_actions_destroy(&actions);
            return error;
        }
        for (i = 0; i < count && !error; i++) {
            error = posix_spawn_file_actions_adddup2(&actions, ours[i], theirs[i]);
            last = theirs[i] > last ? theirs[i] : last;
        }
        for (fd = 3; fd < last && !error; fd++) {
            for (i = 0; i < count && theirs[i] != fd; i++)
                ;
            if (i == count)
                error = posix_spawn_file_actions_addclose(&actions, fd);
        }
        if (!error)
            error = add_closing(&actions, last + 1);
        if (!error && directory)
            error = add_directory(&actions, directory);
        if (!error)
            error = posix_spawnattr_setsigdefault(&attributes, &all);
        if (!error)
            error = posix_spawnattr_setsigmask(&attributes, &none);
        if (!error)
            error = posix_spawnattr_setpgroup(&attributes, 0);
        if (!error)
            error = posix_spawnattr_setflags(&attributes,
                POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
        if (!error)
            error = posix_spawn(pid, path, &actions, &attributes, arguments, environment);
        posix_spawnattr_destroy(&attributes);
        posix_spawn_file_actions_destroy(&actions);
        return error;
    }
    """
    ctypedef int pid_t
    int start(
        pid_t *pid, const char *path, char **arguments, char **environment, const char *directory,
        const int *ours, const int *theirs, int count,
    ) noexcept nogil

# One message takes three; what is more is a mistake.
cdef enum:
    MOST = 16


cdef char **_strings(list words) except NULL:
    """A NULL-ended array of pointers into the list's bytes objects, which must live as long."""
    cdef Py_ssize_t n = len(words), i
    cdef char **array = <char **>malloc((n + 1) * sizeof(char *))
    if array is NULL:
        raise MemoryError()
    for i in range(n):
        array[i] = PyBytes_AS_STRING(words[i])
    array[n] = NULL
    return array


cdef list _checked(object words):
    """Those of words as a list; ValueError for a NUL, at which C would end the word."""
    cdef list found = []
    for word in words:
        if not isinstance(word, bytes):
            raise TypeError(f"bytes, not {type(word).__name__}")
        if b"\0" in word:
            raise ValueError("a NUL in a program's name, argument or environment")
        found.append(word)
    return found


def spawn(bytes path not None, arguments, environment, descriptors, bytes directory=None):
    """Start path; see _spawn.pyi."""
    cdef list words = _checked(arguments)
    cdef list variables = _checked(environment)
    cdef int ours[MOST]
    cdef int theirs[MOST]
    cdef int count = 0, error, highest = 2
    cdef char **argv = NULL
    cdef char **envp = NULL
    cdef const char *program = PyBytes_AS_STRING(path)
    cdef const char *where = NULL
    cdef pid_t pid = 0
    _checked((path, directory or b""))
    if directory is not None:
        where = PyBytes_AS_STRING(directory)
    if len(descriptors) > MOST:
        raise ValueError("too many descriptors")
    for own, wanted in descriptors:
        ours[count] = own
        theirs[count] = wanted
        highest = max(highest, theirs[count])
        count += 1
    for own, _ in descriptors:
        if own <= highest:
            raise ValueError("a descriptor of ours would be overwritten before it is given")
    try:
        argv = _strings(words)
        envp = _strings(variables)
        with nogil:
            error = start(&pid, program, argv, envp, where, ours, theirs, count)
    finally:
        free(argv)
        free(envp)
    if error:
        from os import strerror
        raise OSError(error, strerror(error), path.decode("utf-8", "surrogateescape"))
    return pid
