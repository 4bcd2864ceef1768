// Package argo runs the health check and the resource actions that Kiln ships for Argo CD with Argo CD's own code.
package argo

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/argoproj/gitops-engine/pkg/health"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/argoproj/argo-cd/v3/util/lua"
)

const customization = "../../../docs/gitops/argocd/kiln.build/ImageBuild"

// The file health_test.yaml, in the form that Argo CD takes upstream.
type healthTests struct {
	Tests []struct {
		InputPath    string              `json:"inputPath"`
		HealthStatus health.HealthStatus `json:"healthStatus"`
	} `json:"tests"`
}

func text(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(customization, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func object(t *testing.T, path string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text(t, path)), &object.Object); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return object
}

func tests(t *testing.T) healthTests {
	t.Helper()
	var tests healthTests
	if err := yaml.UnmarshalStrict([]byte(text(t, "health_test.yaml")), &tests); err != nil {
		t.Fatal(err)
	}
	return tests
}

func TestEveryRowHasATest(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(customization, "testdata", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, test := range tests(t).Tests {
		named[filepath.Base(test.InputPath)] = true
	}
	if len(files) == 0 || len(named) != len(files) {
		t.Errorf("%d rows, %d tests", len(files), len(named))
	}
	for _, file := range files {
		if !named[filepath.Base(file)] {
			t.Errorf("health_test.yaml lacks %s", file)
		}
	}
}

// As Argo CD tests the checks that it bundles: the script alone, with its sandbox.
func TestHealth(t *testing.T) {
	script := text(t, "health.lua")
	for _, test := range tests(t).Tests {
		t.Run(test.InputPath, func(t *testing.T) {
			found, err := lua.VM{UseOpenLibs: true}.ExecuteHealthLua(object(t, test.InputPath), script)
			if err != nil {
				t.Fatal(err)
			}
			if *found != test.HealthStatus {
				t.Errorf("expected %+v, found %+v", test.HealthStatus, *found)
			}
		})
	}
}

// As a cluster computes it where the script stands in argocd-cm: what is being deleted does not reach the script.
func TestHealthOfAnApplication(t *testing.T) {
	overrides := lua.ResourceHealthOverrides{"kiln.build/ImageBuild": {HealthLua: text(t, "health.lua")}}
	for _, test := range tests(t).Tests {
		t.Run(test.InputPath, func(t *testing.T) {
			object, want := object(t, test.InputPath), test.HealthStatus
			if object.GetDeletionTimestamp() != nil {
				want = health.HealthStatus{Status: health.HealthStatusProgressing, Message: "Pending deletion"}
			}
			found, err := health.GetResourceHealth(object, overrides)
			if err != nil {
				t.Fatal(err)
			}
			if found == nil || *found != want {
				t.Errorf("expected %+v, found %+v", want, found)
			}
		})
	}
}

// What the page for users says: without the script a failed build leaves its application green.
func TestWithoutTheScriptThereIsNoHealth(t *testing.T) {
	found, err := health.GetResourceHealth(object(t, "testdata/failed.yaml"), lua.ResourceHealthOverrides{})
	if err != nil || found != nil {
		t.Errorf("expected none, found %+v (%v)", found, err)
	}
}
