/* libFuzzer as a Python module: run(arguments, target) calls target(bytes) until libFuzzer ends the process.
 *
 * Loaded with RTLD_GLOBAL before the instrumented modules, whose coverage counters then find their home here:
 * no embedded interpreter, no LD_PRELOAD.  An exception out of target prints its traceback and aborts, which
 * libFuzzer reports as a crash with the input that made it.
 *
 * What is written in Python has no counters; drive.py counts its lines in `lines`, and libFuzzer finds them by the
 * name of their section.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

extern int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*callback)(const uint8_t *data, size_t size));

static PyObject *target;

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t lines[1 << 14];

static int call_target(const uint8_t *data, size_t size)
{
    PyObject *input = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    PyObject *result = input ? PyObject_CallOneArg(target, input) : NULL;
    if (result == NULL) {
        PyErr_Print();
        fflush(NULL);
        abort();
    }
    Py_DECREF(input);
    Py_DECREF(result);
    return 0;
}

static PyObject *run(PyObject *module, PyObject *args)
{
    PyObject *arguments;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!O", &PyList_Type, &arguments, &target))
        return NULL;
    Py_INCREF(target);
    int argc = (int)PyList_GET_SIZE(arguments);
    /* Never freed: libFuzzer keeps them, and ends the process itself. */
    char **argv = calloc((size_t)argc + 1, sizeof(char *));
    if (argv == NULL)
        return PyErr_NoMemory();
    for (int i = 0; i < argc; i++) {
        const char *text = PyUnicode_AsUTF8(PyList_GET_ITEM(arguments, i));
        if (text == NULL || (argv[i] = strdup(text)) == NULL)
            return NULL;
    }
    return PyLong_FromLong(LLVMFuzzerRunDriver(&argc, &argv, call_target));
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS, "run(arguments, target): libFuzzer's main; does not return when it ends in time"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "driver", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_driver(void)
{
    PyObject *made = PyModule_Create(&module);
    PyObject *view = made ? PyMemoryView_FromMemory((char *)lines, sizeof lines, PyBUF_WRITE) : NULL;
    if (view == NULL || PyModule_AddObjectRef(made, "lines", view) < 0)
        Py_CLEAR(made);
    Py_XDECREF(view);
    return made;
}
