"""The contract of every inner name of TensorFlow and Keras that Umbel uses: a release that breaks one says which."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from umbel.clients.tensorflow import compat


def traced(function, *specs):
    return tf.function(function, autograph=False, input_signature=list(specs)).get_concrete_function()


NUMBER = tf.TensorSpec([], tf.float32)


def in_a_loop(variable):
    def body(count):
        variable.assign_add(1.0)
        return (count + 1,)

    return tf.while_loop(lambda count: count < 3, body, (tf.constant(0),))[0]


def in_a_branch(variable, number):
    return tf.cond(number > 0, lambda: variable.assign(number), lambda: tf.constant(0.0))


def in_a_case(variable, number):
    return tf.switch_case(tf.cast(number, tf.int32), [lambda: variable.assign(1.0), lambda: variable + 0.0])


def in_a_call(variable, number):
    inner = tf.function(lambda value: variable.assign(value), jit_compile=True, autograph=False)
    return inner(number)


WAYS = {
    "at once": (lambda variable, number: variable.assign_add(number), True),
    "in a loop": (lambda variable, number: in_a_loop(variable), True),
    "in a branch": (in_a_branch, True),
    "in a case": (in_a_case, True),
    "in a call compiled with XLA": (in_a_call, True),
    "read": (lambda variable, number: variable * number, False),
    "asked whether it has a value": (lambda variable, number: variable.is_initialized(), False),
    "read in a branch": (lambda variable, number: tf.cond(number > 0, lambda: variable + 1.0, lambda: number), False),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_function_assigns_is_found_wherever_it_does(way):
    function, is_assigned = WAYS[way]
    moved, still = tf.Variable(1.0, name="moved"), tf.Variable(2.0, name="still")
    concrete = traced(lambda number: function(moved, number) is not None and still * number, NUMBER)
    assert (id(moved.handle) in compat.assigned(concrete)) == is_assigned
    assert id(still.handle) not in compat.assigned(concrete)


def test_a_table_that_is_only_looked_up_is_not_assigned_and_one_that_grows_is():
    initial = tf.lookup.KeyValueTensorInitializer(["a"], [1])
    static, growing = (
        tf.lookup.StaticHashTable(initial, 0),
        tf.lookup.experimental.MutableHashTable(tf.string, tf.int32, 0),
    )

    def step(words):
        growing.insert(words, static.lookup(words))
        return growing.size()

    concrete = traced(step, tf.TensorSpec([None], tf.string))
    found = compat.assigned(concrete)
    handles = {id(handle) for handle in concrete.captured_inputs if handle.dtype == tf.resource}
    assert handles >= found.keys()
    assert len(found) == 1
    (operation,) = found.values()
    assert "Insert" in operation.type
    tables = [handle for handle in concrete.captured_inputs if id(handle) in found]
    assert compat.variable_type(tables[0]) is None


def test_type_value_and_name_of_a_captured_variable():
    variable = tf.Variable([[1, 2]], dtype=tf.int64, name="pair")
    concrete = traced(lambda number: number + tf.cast(tf.reduce_sum(variable), tf.float32), NUMBER)
    (handle,) = concrete.captured_inputs
    assert compat.variable_type(handle) == (tf.int64, tf.TensorShape([1, 2]))
    np.testing.assert_array_equal(compat.read(handle), [[1, 2]])
    assert compat.variable_names(concrete) == {id(handle): "pair"}
    compat.assign(handle, tf.constant([[3, 4]], tf.int64))
    np.testing.assert_array_equal(variable, [[3, 4]])


def test_a_call_over_another_variable_leaves_the_first_as_it_is():
    variable, twin = tf.Variable(1.0), tf.Variable(10.0)
    concrete = traced(variable.assign_add, NUMBER)
    result = compat.call_flat(concrete, [tf.constant(2.0)], [twin.handle])
    assert (float(result), float(twin), float(variable)) == (12.0, 12.0, 1.0)


def test_operations_of_functions_are_operations_of_the_graph():
    variable = tf.Variable(1.0)
    types = {
        operation.type for operation in compat.operations(traced(lambda number: in_a_loop(variable), NUMBER).graph)
    }
    assert {"While", "AssignAddVariableOp", "Less"} <= types


def test_xla_lists_its_kernels_and_their_types():
    known = compat.xla_kernels("CPU:0")
    assert len(known) > 300
    assert {"MatMul", "While", "Const", "ReadVariableOp"} <= known.keys()
    assert "PyFunc" not in known
    (categorical,) = known["StatelessMultinomial"]
    assert categorical["Tseed"] == {tf.int32.as_datatype_enum}


def test_lowering_tells_what_xla_cannot_compile():
    vector = tf.TensorSpec([3], tf.float32)
    assert compat.lowering_error(lambda values: values + 1, [vector]) is None
    assert compat.lowering_error(lambda inputs, pair: inputs["a"] + pair[1], [{"a": vector}, (vector, vector)]) is None
    # The number of repeats would have to be known when it is compiled.
    assert compat.lowering_error(lambda values: tf.repeat(values, tf.cast(values, tf.int32)), [vector])


def test_a_model_is_built_from_shapes_alone():
    class Lazy(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.BatchNormalization()

        def call(self, x, training=False):
            return self.layer(x, training=training)

    model = Lazy()
    model.compile("sgd", "mse")
    compat.symbolic_build(model, (np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)))
    assert [weight.path.rpartition("/")[2] for weight in model.weights] == [
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    ]
    np.testing.assert_array_equal(model.weights[2], 0)


def test_eager_assignments_are_seen_before_they_happen():
    variable, generator, seen = tf.Variable(1.0), tf.random.Generator.from_seed(1), []
    with compat.watching_assignments(lambda handle: seen.append(compat.read(handle).numpy())):
        variable.assign_add(1.0)
        variable.assign(5.0)
        generator.normal([2])
        traced(lambda number: variable.assign(number), NUMBER)
    np.testing.assert_array_equal(seen[:2], [1.0, 2.0])
    assert len(seen) == 3
    variable.assign(0.0)
    assert len(seen) == 3


def test_operations_that_keep_a_state_of_their_own_are_named():
    def step(number):
        drawn = tf.raw_ops.RandomStandardNormal(shape=[1], dtype=tf.float32) + tf.random.stateless_normal([1], [1, 2])
        return drawn + tf.numpy_function(lambda value: value, [number], tf.float32) + variable

    variable = tf.Variable(1.0)
    found = [operation.type for operation in compat.stateful_operations(traced(step, NUMBER).graph)]
    assert found == ["RandomStandardNormal", "PyFunc"]


def test_a_trace_leaves_no_gradient_behind_but_those_of_functions_that_it_calls():
    @tf.custom_gradient
    def doubled(number):
        return 2 * number, lambda upstream: 3 * upstream

    called = tf.function(lambda number: doubled(number), autograph=False)

    def everywhere(number):
        inside_a_loop = tf.while_loop(lambda n: n < 8.0, lambda n: (doubled(n),), (number,))[0]
        return tf.cond(number > 0, lambda: doubled(number), lambda: number) + inside_a_loop + called(number)

    registry = compat.ops.gradient_registry._registry
    before = set(registry)
    traced = compat.graph_function(everywhere).get_concrete_function(NUMBER)
    assert len(set(registry) - before) == 1
    assert traced(tf.constant(1.0)) == 2 + 8 + 2
    with tf.GradientTape() as tape:
        number = tf.Variable(1.0)
        result = called(number)
    assert tape.gradient(result, number) == 3.0


def test_a_gradient_that_a_user_has_registered_stays():
    if "OfATest" not in compat.ops.gradient_registry._registry:
        tf.RegisterGradient("OfATest")(lambda operation, upstream: 5 * upstream)

    def overridden(number):
        with tf.compat.v1.get_default_graph().gradient_override_map({"Identity": "OfATest"}):
            return tf.identity(number)

    compat.graph_function(overridden).get_concrete_function(NUMBER)
    assert "OfATest" in compat.ops.gradient_registry._registry


def test_seeding_tensorflow_makes_another_generator():
    tf.random.set_seed(1)
    before = compat.eager_generator()
    tf.random.normal([])
    assert compat.eager_generator() is before is not None
    tf.random.set_seed(1)
    assert compat.eager_generator() is not before


def test_kernels_that_were_let_go_are_made_again():
    add = traced(lambda number: number + 1, NUMBER)
    assert add(tf.constant(1.0)) == 2.0
    compat.clear_kernels()
    assert add(tf.constant(2.0)) == 3.0
