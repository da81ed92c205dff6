// Renders a Helm chart as `helm template` does: Go's templates, sprig's functions and those that Helm adds. For machines
// without Helm. Arguments: the chart's folder, the release's name, a YAML file of values that override the chart's.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

type object = map[string]interface{}

func read(file string) object {
	content, err := os.ReadFile(file)
	check(err)
	values := object{}
	check(yaml.Unmarshal(content, &values))
	text, err := json.Marshal(values) // as Helm does: every number becomes floating point
	check(err)
	values = object{}
	check(json.Unmarshal(text, &values))
	return values
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Objects are merged key by key, everything else is replaced.
func merge(into, from object) object {
	for key, value := range from {
		if part, isObject := value.(object); isObject {
			if old, wasObject := into[key].(object); wasObject {
				into[key] = merge(old, part)
				continue
			}
		}
		into[key] = value
	}
	return into
}

func main() {
	folder, release := os.Args[1], os.Args[2]
	chart := read(filepath.Join(folder, "Chart.yaml"))
	data := object{
		"Values":  merge(read(filepath.Join(folder, "values.yaml")), read(os.Args[3])),
		"Chart":   object{"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
		"Release": object{"Name": release, "Namespace": "default", "Service": "Helm"},
	}
	root := template.New("").Option("missingkey=zero")
	root.Funcs(sprig.TxtFuncMap()).Funcs(template.FuncMap{
		"include": func(name string, with interface{}) (string, error) {
			var text bytes.Buffer
			err := root.ExecuteTemplate(&text, name, with)
			return text.String(), err
		},
		"toYaml": func(value interface{}) (string, error) {
			text, err := yaml.Marshal(value)
			return strings.TrimSuffix(string(text), "\n"), err
		},
		"required": func(message string, value interface{}) (interface{}, error) {
			if value == nil || value == "" {
				return nil, errors.New(message)
			}
			return value, nil
		},
		"fail": func(message string) (string, error) { return "", errors.New(message) },
	})
	files, err := filepath.Glob(filepath.Join(folder, "templates", "*"))
	check(err)
	for _, file := range files {
		content, err := os.ReadFile(file)
		check(err)
		_, err = root.New(filepath.Base(file)).Parse(string(content))
		check(err)
	}
	for _, file := range files {
		if name := filepath.Base(file); strings.HasSuffix(name, ".yaml") {
			fmt.Println("---")
			check(root.ExecuteTemplate(os.Stdout, name, data))
		}
	}
}
