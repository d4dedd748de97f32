"""A model's compiled steps, made again when it has other variables, as after `enable_lora`."""

import functools
import weakref

import keras

from kgpt.models.trained_dtypes import check_trained_dtypes


def _made_for_variables(make):
    """Returns Keras's method, which makes a function once, as one that knows what it is made for.

    TensorFlow's functions would go on with the variables that they were traced with.
    """

    @functools.wraps(make)
    def make_function(self, force: bool = False):
        made_for = vars(self).setdefault("_made_for", {})
        known, variables = made_for.get(make.__name__, ()), self.weights
        if [id(ref()) for ref in known] != [id(variable) for variable in variables]:
            made_for[make.__name__] = [weakref.ref(variable) for variable in variables]
            force = True
        return make(self, force)

    return make_function


make_test_function = _made_for_variables(keras.Model.make_test_function)
make_predict_function = _made_for_variables(keras.Model.make_predict_function)


@_made_for_variables
def make_train_function(self, force: bool = False):
    """Compiles the step as `keras.Model` does, for dtypes that can be trained."""
    # Before a fit begins: on JAX a step that fails takes the weights with it.
    check_trained_dtypes(self)
    if self.built and self.optimizer is not None and not self.optimizer.built:
        self.optimizer.build(self.trainable_variables)  # or TensorFlow traces the step twice
    return keras.Model.make_train_function(self, force)
